"""Options of commands that run on several devices or in several processes."""

from __future__ import annotations

import argparse
import re
import uuid
from pathlib import Path
from typing import Any

from starflow_jax.cli.errors import REFUSED, TRY_AGAIN, CommandError, sentences
from starflow_jax.cli.options.arguments import integer
from starflow_jax.cli.process_group import HEARTBEAT_SECONDS, is_first
from starflow_jax.core.storage.places import FOLDER_VARIABLE

JOIN_SECONDS = 300  # how long the processes wait for one another at the start
STAGE_SECONDS = 3600  # likewise, where process 0 copies a run from a store first
# How long they wait at the end, where process 0 may compute results. A dead process is detected by its heartbeat.
LEAVE_SECONDS = 24 * 3600


def add_processes(parser: argparse.ArgumentParser) -> None:
    """Declares the options of runs in several processes."""
    group = parser.add_argument_group(
        "several processes", "every process runs the same command; on a TPU pod or under Slurm --distributed suffices"
    )
    group.add_argument("--distributed", action="store_true", help="join a run of several processes")
    group.add_argument("--coordinator", metavar="HOST:PORT", help="where process 0 listens")
    group.add_argument("--processes", type=integer(1), metavar="N", help="number of processes")
    group.add_argument("--process", type=integer(0), metavar="I", help="index of this process, from 0")


def add_mesh(parser: argparse.ArgumentParser) -> None:
    """Declares --mesh, for commands without a configuration that names the mesh."""
    parser.add_argument(
        "--mesh",
        type=mesh_sizes,
        metavar="AXIS=N,...",
        help="sizes of the mesh axes slices, data, fsdp, tensor, sequence, -1 for all other devices (default: data=-1)",
    )


def mesh_sizes(text: str) -> dict[str, int]:
    """Parses AXIS=N,...: axes of the mesh, each once, with sizes of at least 1, or -1 for all other devices."""
    from starflow_jax.core.config.mesh_config import AXES

    sizes: dict[str, int] = {}
    for part in text.split(","):
        name, _, size = part.partition("=")
        if name not in AXES or name in sizes or not re.fullmatch(r"-1|[1-9]\d{0,8}", size, re.ASCII):
            raise argparse.ArgumentTypeError(
                f"must be AXIS=N,... of {', '.join(AXES)}, each once, N at least 1 or -1 for the rest, got {text!r}"
            )
        sizes[name] = int(size)
    return sizes


def join(arguments: argparse.Namespace) -> None:
    """Joins the other processes of a run, if there are any, and ends with them. To be called before JAX is used.

    Raises:
      CommandError: incompatible options, or processes that cannot be reached.
    """
    given = {name: getattr(arguments, name) for name in ("coordinator", "processes", "process")}
    named = [name for name, value in given.items() if value is not None]
    if not arguments.distributed and not named:
        return
    if named and len(named) < 3:
        missing = ", ".join(f"--{name}" for name in given if name not in named)
        raise CommandError(f"--coordinator, --processes and --process must be given together, got no {missing}")
    if named and given["process"] >= given["processes"]:
        raise CommandError(f"--process must be below --processes {given['processes']}, got {given['process']}")

    import jax

    # Collectives of several processes on CPUs block threads of a small pool: two programs that run at once, started in
    # another order by another process, would deadlock.
    jax.config.update("jax_cpu_enable_async_dispatch", False)
    try:
        if not jax.distributed.is_initialized():  # by an earlier command in this process
            jax.distributed.initialize(
                given["coordinator"],
                given["processes"],
                given["process"],
                initialization_timeout=STAGE_SECONDS if getattr(arguments, "staged", ()) else JOIN_SECONDS,
                heartbeat_timeout_seconds=HEARTBEAT_SECONDS,
                shutdown_timeout_seconds=LEAVE_SECONDS,
            )
    except (ValueError, RuntimeError) as error:
        first = str(error).splitlines()[0] if str(error) else type(error).__name__
        # Others that are late are no mistake in the options.
        code = TRY_AGAIN if isinstance(error, RuntimeError) else REFUSED
        raise CommandError(f"the processes of this run could not be joined: {first}", code) from error
    arguments.others.watch()
    for path in getattr(arguments, "staged", ()):
        _check_shared(path)


def _check_shared(path: Path) -> None:
    """Raises CommandError unless all processes see the local folder of what is written to a store. A collective."""
    from starflow_jax.training.distributed.agreement import barrier, everywhere, gather_texts

    mark = path.with_name(f".{path.name}.{gather_texts(uuid.uuid4().hex)[0]}")
    if is_first():
        mark.touch()
    barrier("marked a folder")
    seen = everywhere(mark.exists())
    if is_first():
        mark.unlink()
    if not seen:
        raise CommandError(
            f"{path} must be in a folder that all processes share, since process 0 publishes it: the environment "
            f"variable {FOLDER_VARIABLE} names one"
        )


def layout_of_command(arguments: argparse.Namespace) -> Any:
    """The layout of `--mesh` over all devices; None for one device.

    Raises:
      CommandError: an axis that does not exist, or sizes that do not multiply to the devices.
    """
    from starflow_jax.core.config.mesh_config import MeshConfig
    from starflow_jax.sharding import make_layout

    sizes = dict(arguments.mesh or {})
    sizes.setdefault("data", 1 if -1 in sizes.values() else -1)
    with sentences(MeshConfig.__post_init__, MeshConfig.sizes):
        return make_layout(MeshConfig(**sizes))
