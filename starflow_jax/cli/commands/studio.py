"""`starflow studio`: a trained model in the browser."""

from __future__ import annotations

import argparse
import contextlib
import signal
import threading
from typing import Any

from starflow_jax.cli.errors import sentences
from starflow_jax.cli.options.arguments import integer
from starflow_jax.cli.options.build_request import build_request
from starflow_jax.cli.options.trained_model import add_checkpoint, add_trained_model

ORDER = 47
COMPILES = True

DESCRIPTION = """\
Shows a trained model in the browser, on this machine alone unless --host says otherwise. Needs the extra studio:
pip install 'starflow-jax[studio]'.

  Draw      from a class or a caption; the frames of videos appear as they are final
  Continue  a picture or clip that is dropped, or translate it (videos)
  Score     a picture or clip: bits/dim, the surprise of every token, the class by the Bayes rule, whether it is like
            the data of the run
  Edit      paint over a part, which is then filled in
  Training  curves, samples over time and goodput, also while the run trains
  Compare   two checkpoints or solvers on the same noise

Samples and edits state the command line that repeats them. One request is worked on at a time; others wait. Files are
decoded by the readers of starflow, nothing of this machine is served but the pages, and the pages load nothing from
elsewhere.
There are no passwords: whoever reaches the address may use it. Ends on Ctrl-C."""

EXAMPLES = """\
examples:
  starflow studio --workdir runs/digits
  starflow studio --model models/starflow-v --port 8000
  starflow studio --workdir runs/moving --host 0.0.0.0 --queue 8 --max-upload 8
"""


def add_to(subparsers: Any) -> None:
    """Declares the command."""
    parser = subparsers.add_parser(
        "studio", help="a trained model in the browser", description=DESCRIPTION, epilog=EXAMPLES
    )
    add_trained_model(parser)
    option = parser.add_argument
    add_checkpoint(parser)
    option(
        "--host",
        metavar="ADDRESS",
        help="IP address to listen on (default 127.0.0.1, this machine alone; 0.0.0.0: whoever reaches it)",
    )
    option("--port", type=integer(1, 65535), metavar="N", help="port to listen on (default 7860)")
    option("--queue", type=integer(1, 10_000), metavar="N", help="requests that may wait at once (default 32)")
    option("--max-upload", type=integer(1, 1024), metavar="MIB", help="largest file to upload, in MiB (default 32)")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Runs the command until it is interrupted; returns an exit code."""
    from starflow_jax.studio.studio_request import StudioRequest

    request = build_request(StudioRequest, arguments, ema=not arguments.no_ema)

    from starflow_jax.studio.opened_model import Checkpoints, check_model
    from starflow_jax.studio.serving import check_extra, check_port, serving

    with sentences():
        check_model(request)
        check_port(request.host, request.port)
        check_extra()
        checkpoints = Checkpoints(request)
    with contextlib.ExitStack() as stack:
        with sentences():  # what fails while the pages are built is about the run or the port
            address = stack.enter_context(serving(request, checkpoints))
        print(f"studio: {address} (Ctrl-C ends it)", flush=True)
        if not request.is_local:
            print("It has no passwords: whoever reaches this address may use it.", flush=True)
        _wait_for_signal()
    print("ended", flush=True)
    return 0


def _wait_for_signal() -> None:
    """Waits until somebody interrupts or ends the process, so that the folder of uploads is removed in both cases."""
    stop = threading.Event()
    before = {number: signal.signal(number, lambda *_: stop.set()) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        stop.wait()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
