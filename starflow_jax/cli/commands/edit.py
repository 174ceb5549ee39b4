"""`starflow edit`: fills in, enlarges, denoises, colours, interpolates and changes images and clips."""

from __future__ import annotations

import argparse
import time
from typing import TYPE_CHECKING, Any

from starflow_jax.cli.edit_checks import POSTERIOR, check_data, check_options, check_out
from starflow_jax.cli.errors import CommandError, sentences
from starflow_jax.cli.options.arguments import choice, class_choice, integer, real
from starflow_jax.cli.options.build_request import build_request
from starflow_jax.cli.options.caption_options import read_captions
from starflow_jax.cli.options.devices import add_mesh, add_processes, join, layout_of_command
from starflow_jax.cli.options.paths import operator_name
from starflow_jax.cli.options.stored import output_file, output_path, read_path, work_path
from starflow_jax.cli.options.trained_model import add_checkpoint, add_trained_model
from starflow_jax.cli.process_group import is_first
from starflow_jax.cli.stopped_training import report_stop
from starflow_jax.core.choices import ChainMoves, EditOperation, choices
from starflow_jax.core.storage.addresses import is_address

if TYPE_CHECKING:
    import numpy as np

    from starflow_jax.editing.operators import Operator
    from starflow_jax.editing.posterior_sampling import ChainOptions
    from starflow_jax.sampling.loaded_run import Run

CONTINUES = "the same command continues the chains that --checkpoint keeps"

ORDER = 46
COMPILES = True

DESCRIPTION = """\
Edits images or clips with a trained run, without training. INPUTS are images or folders of them, for a run on clips
videos, animations or folders of frames; or .npy and .npz files of integers or of numbers in [-1, 1].

  inpaint      fills in what --mask names: a part of images, or frames in the middle of a clip
  upscale      from pictures whose sides are --factor times smaller
  denoise      from pictures with noise of standard deviation --sigma (pixels are in [-1, 1])
  colourise    from grey pictures
  operator     from what a linear function of yours gives, --operator FILE.py:NAME or MODULE:NAME
  interpolate  between the first half of INPUTS and the second one, by way of the flow's noise
  attribute    the same noise under another class (--to-class) or caption (--to-caption), or moved by the difference of
               the mean noise of two sets of examples (--without, --having)

The first five draw from the posterior p(x | y), in proportion to p(x) N(y; A x, sigma^2), by parallel Markov chains;
since the density of the flow is exact, so is the Metropolis-Hastings rule. The acceptance, the effective sample size
and R-hat are reported."""

EXAMPLES = """\
examples:
  starflow edit inpaint digits.npz --workdir runs/digits --mask half:right --out filled.png
  starflow edit inpaint clip.gif --workdir runs/moving --mask frames:2-5 --caption "a seven moving left" --out new.gif
  starflow edit upscale small.png --workdir runs/photos --factor 4 --chains 8 --out large --json report.json
  starflow edit inpaint faces --workdir runs/photos --mask half:top --steps 5000 --out faces.npz --checkpoint chains
  starflow edit operator y.npy --workdir runs/photos --operator blur.py:blur --sigma 0.05 --out sharp.npz
  starflow edit interpolate a.png b.png --workdir runs/photos --num 8 --out between.png
  starflow edit attribute three.png --workdir runs/digits --class 3 --to-class 5 --out five.png
"""


def add_to(subparsers: Any) -> None:
    """Declares the command."""
    parser = subparsers.add_parser(
        "edit", help="fill in, enlarge, denoise, interpolate images or clips", description=DESCRIPTION, epilog=EXAMPLES
    )
    option = parser.add_argument
    option("operation", type=choice(*choices(EditOperation)), metavar="OPERATION", help="what is done, see above")
    option("inputs", nargs="+", type=read_path, metavar="INPUTS", help="images, clips or arrays")
    add_trained_model(parser)
    add_checkpoint(parser)
    option(
        "--out",
        required=True,
        type=output_path,
        metavar="PATH",
        help="a .png of all results, a row for each input; an .npz; of clips also .gif or .mp4; or a new folder",
    )
    option("--json", type=output_file, metavar="FILE", help="also write the figures as JSON")
    option("--seed", type=integer(0), metavar="N", help="of all draws of posteriors (default 0)")
    option("--scale", type=integer(1, 64), metavar="N", help="side in pixels of an enlarged pixel (default: about 64)")
    option(
        "--class",
        dest="label",
        type=class_choice,
        metavar="N|any|none",
        help="class of the inputs; any, whichever fits, is the default of posteriors",
    )
    option(
        "--caption",
        dest="captions",
        action="append",
        metavar="TEXT|FILE.txt",
        help="caption of the inputs: one for all or one for each",
    )
    add_mesh(parser)
    add_processes(parser)
    group = parser.add_argument_group("posteriors")
    option = group.add_argument
    option(
        "--mask",
        type=_mask,
        metavar="PART|FILE",
        help="inpaint: what is missing: half:left, right, top or bottom; frames:A-B, counted from 0; "
        "box:ROW,COLUMN,HEIGHT,WIDTH; or a picture whose bright pixels are missing, or a .npy file of True and False",
    )
    option("--factor", type=integer(2, 1024), metavar="N", help="upscale: how many times larger a side becomes")
    option(
        "--operator",
        type=operator_name,
        metavar="NAME",
        help="operator: FILE.py:FUNCTION or MODULE:FUNCTION, linear, of data [B, (T,) H, W, C] in operations of JAX",
    )
    option(
        "--measure",
        action="store_const",
        const=True,
        help="INPUTS are whole: measure them first, with noise of --sigma, and report the error of what is restored",
    )
    option(
        "--sigma",
        type=real(maximum=100.0),
        metavar="X",
        help="standard deviation of the noise in the inputs, beyond the model's own (default 0; of latents 0.1)",
    )
    option("--chains", type=integer(1, 4096), metavar="N", help="chains for each input (default 16)")
    option(
        "--candidates",
        type=integer(1, 4096),
        metavar="N",
        help="draws of the flow for each chain, among which chains begin (default 32)",
    )
    option(
        "--steps",
        type=integer(4, 10**6),
        metavar="N",
        help="moves of a chain after the burn-in, above 100 rounded up to hundreds (default 500, of "
        "latent-hamiltonian moves 40)",
    )
    option(
        "--burn-in",
        type=integer(0, 10**6),
        metavar="N",
        help="moves before them, rounded up to whole parts (default 1000, and 60)",
    )
    option(
        "--moves",
        type=choice(*choices(ChainMoves)),
        metavar="NAME",
        help="mala (default), hamiltonian (several leapfrog steps), langevin (mala without its exact rule), latent (of "
        "the noise, without a gradient), latent-hamiltonian (of the noise, leapfrog steps along the gradient: dearer, "
        "and fewer are needed) or both (a latent and a hamiltonian move in turn)",
    )
    option("--leapfrog", type=integer(1, 1000), metavar="N", help="leapfrog steps of a move (default 8)")
    option(
        "--step-size",
        type=real(maximum=10.0, above=True),
        metavar="X",
        help="of moves of data, in units of the variance of each value (default: adapted in the burn-in, to "
        "the acceptance of the exact rule)",
    )
    option(
        "--checkpoint",
        type=work_path,
        metavar="DIR",
        help="keep the chains in this folder while they run: after they were stopped or killed, the same command "
        "continues them to the same draws; Ctrl-C (exit code 130) and SIGTERM (0) wait for the end of the "
        "moves that are running",
    )
    group = parser.add_argument_group("interpolations and attributes")
    option = group.add_argument
    option("--num", type=integer(2, 1000), metavar="N", help="interpolate: points, both ends included (default 8)")
    option("--to-class", dest="to_label", type=class_choice, metavar="N|none", help="attribute: the new class")
    option("--to-caption", metavar="TEXT", help="attribute: the new caption")
    option(
        "--without", type=read_path, metavar="PATH", help="attribute: examples without it, of the class of the inputs"
    )
    option(
        "--having", type=read_path, metavar="PATH", help="attribute: examples that have it, of the class of the inputs"
    )
    option("--strength", type=real(-100.0, 100.0), metavar="X", help="attribute: factor of the move (default 1)")
    parser.set_defaults(run=run)


def _mask(text: str) -> Any:
    """Parses what is missing, which depends on the data, or the address of a file; returns the text otherwise."""
    if not text.strip() or "\0" in text:
        raise argparse.ArgumentTypeError(f"must name what is missing, got {text!r}")
    return read_path(text) if is_address(text) else text


def run(arguments: argparse.Namespace) -> int:
    """Runs the command; returns an exit code."""
    from starflow_jax.sampling.sample_requests import RunRequest

    request = build_request(RunRequest, arguments, ema=not arguments.no_ema)
    check_options(arguments)
    captions = None if arguments.captions is None else read_captions(arguments.captions)
    join(arguments)

    from starflow_jax.cli.edit_results import write_between, write_restored
    from starflow_jax.sampling.loaded_run import open_run

    layout = layout_of_command(arguments)
    with sentences(open_run):
        model = open_run(request, layout=layout)
    check_data(arguments, model)
    check_out(arguments, model)
    with sentences():
        if arguments.operation in POSTERIOR:
            return _restore(arguments, model, captions, write_restored)
        return _between(arguments, model, captions, write_between)


def chain_options(arguments: argparse.Namespace) -> ChainOptions:
    """The options of the chains; draws are evenly spaced among the steps, at most 100 of them."""
    from starflow_jax.editing.posterior_sampling import ChainOptions

    # Each of these moves costs as much as tens of the others, and fewer are needed (docs/editing.md).
    few = arguments.moves == "latent-hamiltonian"
    steps = arguments.steps or (40 if few else 500)
    draws = min(steps, 100)
    given = {
        "chains": arguments.chains,
        "candidates": arguments.candidates,
        "burn_in": 60 if few and arguments.burn_in is None else arguments.burn_in,
        "moves": arguments.moves,
        "leapfrog": arguments.leapfrog,
        "step": arguments.step_size,
    }
    given = {name: value for name, value in given.items() if value is not None}
    return ChainOptions(draws=draws, thin=-(-steps // draws), **given)


def _condition(model: Run, label: int | str | None, captions: list[str] | None, count: int, prefix: str = "--") -> Any:
    """The condition of some inputs; prefix: of the options that state it."""
    import numpy as np

    from starflow_jax.core.request_errors import RequestError
    from starflow_jax.sampling.image_requests import class_index

    if captions is not None:
        if not model.config.reads_captions:
            raise CommandError(f"{prefix}caption cannot be used with the run in {model.workdir}, which has no captions")
        if len(captions) not in (1, count):
            number = f"one for all or one for each of {count} inputs"
            raise CommandError(f"{prefix}caption must be {number}, got {len(captions)}")
        return captions * count if len(captions) == 1 else captions
    if label in (None, "none"):
        return None
    classes = model.config.num_classes
    try:
        index = class_index(model.config, label)
    except RequestError as error:
        raise CommandError(error.text(lambda _: f"{prefix}class")) from error
    if not isinstance(index, int) or not index < classes:
        allowed = f"below the {classes} classes of the run, or none" if classes else "none for a run without classes"
        raise CommandError(f"{prefix}class must be {allowed}, got {label}")
    return np.full(count, index, np.int32)


def _operator(arguments: argparse.Namespace, size: tuple[int, ...]) -> tuple[Operator, tuple[int, ...] | None]:
    """The operator, and the shape of the pictures that it measures, None for arrays alone."""
    from starflow_jax.editing.examples import hidden_part
    from starflow_jax.editing.named_operators import open_operator
    from starflow_jax.editing.operators import BlockMeans, ChannelMean, Identity

    *front, rows, columns, channels = size
    if arguments.operation == "inpaint":
        try:
            return hidden_part(str(arguments.mask), size), size
        except ValueError as error:
            raise CommandError(f"--mask: {error}") from error
    if arguments.operation == "upscale":
        factor = arguments.factor
        if rows % factor or columns % factor:
            raise CommandError(f"--factor must divide the {rows} rows and {columns} columns of the run, got {factor}")
        return BlockMeans(factor), (*front, rows // factor, columns // factor, channels)
    if arguments.operation == "denoise":
        return Identity(), size
    if arguments.operation == "colourise":
        if channels == 1:
            raise CommandError("colourise needs a run on several channels, got one on grey pixels")
        return ChannelMean(), (*size[:-1], 1)
    return open_operator(arguments.operator), None


def _restore(arguments: argparse.Namespace, model: Run, captions: list[str] | None, write: Any) -> int:
    import jax
    import numpy as np
    from tqdm import tqdm

    from starflow_jax.editing.examples import data_size, read_examples
    from starflow_jax.editing.restoration import restore
    from starflow_jax.editing.resuming import ChainsStopped

    begin, size = time.perf_counter(), data_size(model)
    operator, measured = _operator(arguments, size)
    whole = arguments.operation == "inpaint" or bool(arguments.measure)
    y = read_examples(model.config, arguments.inputs, size if whole else measured, whole=whole)
    truth = y if whole else None
    if arguments.measure:
        # A checkpoint is continued on another device by the same measurements, so all of them use all digits.
        with jax.default_matmul_precision("highest"):
            y = np.asarray(operator(jax.numpy.asarray(y)))
        y = y + np.float32(arguments.sigma or 0.0) * np.random.default_rng(arguments.seed or 0).standard_normal(
            y.shape, np.float32
        )
    options = chain_options(arguments)
    classes = model.config.num_classes
    label = "any" if arguments.label is None and classes else arguments.label
    cond = "any" if label == "any" and classes and not captions else _condition(model, label, captions, len(y))
    try:
        with tqdm(unit="move", disable=None if is_first() else True, dynamic_ncols=True) as bar:
            restored = restore(
                model,
                y,
                operator,
                sigma=arguments.sigma,
                cond=cond,
                options=options,
                seed=arguments.seed or 0,
                progress=bar.update,
                checkpoint=arguments.checkpoint,
            )
    except ChainsStopped as stopped:
        return report_stop(stopped.stopped_by, stopped.moves, stopped.total, "move")
    except KeyboardInterrupt:
        if arguments.checkpoint is None:
            raise
        raise KeyboardInterrupt(CONTINUES) from None
    if is_first():
        write(arguments, model, restored, y, operator, truth, time.perf_counter() - begin)
    return 0


def _between(arguments: argparse.Namespace, model: Run, captions: list[str] | None, write: Any) -> int:
    from starflow_jax.editing.examples import data_size, read_examples
    from starflow_jax.editing.latent_edits import attribute_direction, change_condition, interpolate

    begin, size = time.perf_counter(), data_size(model)

    def read(paths: Any) -> np.ndarray:
        return read_examples(model.config, paths, size, whole=True)

    x = read(arguments.inputs)
    if arguments.operation == "interpolate":
        if len(x) % 2:
            raise CommandError(f"interpolate needs an even number of inputs, got {len(x)}")
        half = len(x) // 2
        cond = _condition(model, arguments.label, captions, len(x))
        conds = (None, None) if cond is None else (cond[:half], cond[half:])
        num = 8 if arguments.num is None else arguments.num
        found = interpolate(model, x[:half], x[half:], num=num, cond=conds[0], second_cond=conds[1])
        if is_first():
            write(arguments, model, found, time.perf_counter() - begin)
        return 0
    cond = _condition(model, arguments.label, captions, len(x))
    to_captions = None if arguments.to_caption is None else [arguments.to_caption]
    to = cond
    if arguments.to_label is not None or to_captions is not None:
        to = _condition(model, arguments.to_label, to_captions, len(x), "--to-")
    shift = None
    if arguments.having is not None:
        strength = 1.0 if arguments.strength is None else arguments.strength
        one = None if cond is None else cond[:1]
        shift = attribute_direction(
            model, read([arguments.without]), read([arguments.having]), cond=one, strength=strength
        )
    changed = change_condition(model, x, cond, to, shift=shift)
    import numpy as np

    if is_first():
        write(arguments, model, np.stack([x, changed], axis=1), time.perf_counter() - begin)
    return 0
