"""`starflow port`: converts released weights to a run, and a run to a PyTorch file."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from starflow_jax.cli.errors import CommandError, sentences
from starflow_jax.cli.options.arguments import choice
from starflow_jax.cli.options.build_request import build_request
from starflow_jax.cli.options.devices import add_mesh, layout_of_command
from starflow_jax.cli.options.model_config import add_model_config, with_model_config
from starflow_jax.cli.options.outputs import check_new_folder, check_writable
from starflow_jax.cli.options.paths import experiment_file, path
from starflow_jax.cli.options.quantise import add_quantise
from starflow_jax.cli.options.stored import output_file, read_path
from starflow_jax.cli.options.trained_model import add_checkpoint
from starflow_jax.core.choices import Transfer, choices
from starflow_jax.core.storage.hub_addresses import is_hub_address
from starflow_jax.core.storage.places import shown

if TYPE_CHECKING:
    from starflow_jax.training.checkpoints.port_requests import Porting

ORDER = 160
OVERRIDABLE = True

DESCRIPTION = """\
Turns files of the PyTorch originals (STARFlow, STARFlow-V, TARFlow) into the folder of a run, and back.

Files are .pth, .pt or .bin of torch.save, .safetensors, an index of several such files, or a folder of
torch.distributed.checkpoint; PyTorch is not needed, and nothing in a file is executed. Tensors are read and written
one by one, so a model of any size needs a few of its layers in memory. Every tensor that is missing, unexpected or of
another shape is listed, and then nothing is written. The run is at step 0 and holds parameters alone: starflow sample,
evaluate, score and info take it as it is, and starflow train begins from it.

--quantise stores the weights of the layers in 8 or 4 bits, of the tensors of --from or of the run --flow. Such a run
samples and scores, and is not trained; its likelihoods are those of the quantised model.

--names reads and writes files of other implementations, whose tensors have other names, by a table: a JSON object from
names of this project to names in the file, where {placeholders} stand for integers, and a list of names for tensors
that are concatenated. Such flows may have what the originals do not have, such as classes of tokens and adaptive
norms; the experiment gives all their fields. docs/porting.md describes the table."""

EXAMPLES = """\
examples:
  starflow port --from starflow_3B_t2i_256x256.pth --config experiments/starflow_3b_t2i.py --workdir runs/3b
  starflow port --from hf://ORG/NAME/model.pth --config experiments/starflow_3b_t2i.py --workdir runs/3b
  starflow port --from afhq.pth --config experiments/tarflow_afhq256.py --workdir runs/afhq --infer
  starflow port --flow runs/3b --quantise int8 --workdir runs/3b-int8
  starflow port --workdir runs/3b --to-torch weights.safetensors
  starflow port --from molecules.pt --names names.json --weights model --config chain.py --workdir runs/chain
  starflow port --workdir runs/chain --to-torch back.safetensors --names names.json
  starflow port --verify tests/goldens/starflow_image --json errors.json
  starflow port --assemble model --flow runs/3b --autoencoder sd-vae --text-encoder flan-t5-xl

docs/porting.md has the commands for the released weights.
"""

_MODES = {
    "verify": "--verify DIR",
    "assemble": "--assemble DIR --flow DIR --autoencoder PATH --text-encoder DIR",
    "to_torch": "--workdir DIR --to-torch FILE",
    "flow": "--flow DIR --quantise NAME --workdir DIR",
    "source": "--from PATH --config FILE --workdir DIR",
}
# The options that each of the modes accepts.
_ALLOWED = {
    "verify": {"source", "weights", "names", "workdir", "step", "no_ema"},
    "assemble": {"flow", "autoencoder", "text_encoder", "place"},
    "to_torch": {"workdir", "names", "step", "no_ema"},
    "flow": {"workdir", "quantise", "step", "no_ema"},
    "source": {"config", "model_config", "ignore_unknown", "workdir", "weights", "infer", "allow_partial", "mesh"}
    | {"quantise", "names"},
}


def add_to(subparsers: Any) -> None:
    """Declares the command."""
    parser = subparsers.add_parser(
        "port", help="released weights to a run, and back", description=DESCRIPTION, epilog=EXAMPLES
    )
    option = parser.add_argument
    option("--from", dest="source", type=read_path, metavar="PATH", help="a file or folder of tensors, or its address")
    option("--config", type=experiment_file, metavar="FILE[:VARIANT]", help="the experiment whose flow the tensors are")
    option(
        "--workdir",
        "--to",
        type=path,
        metavar="DIR",
        help="folder of the run: new or empty, or with --to-torch its own",
    )
    option(
        "--weights",
        "--state",
        metavar="KEY",
        help="which weights of a file that holds several, such as model or ema; without it a sentence names them; with "
        "--names, what the names of the wanted tensors begin with",
    )
    option(
        "--names",
        type=read_path,
        metavar="TABLE.json",
        help="names of the tensors in a file of another implementation, for --from and --to-torch",
    )
    option("--infer", action="store_true", help="take from the file what its tensors decide, instead of --config")
    option(
        "--allow-partial",
        action="store_true",
        help="write although tensors are missing (they keep their initial values), unexpected or of another shape",
    )
    option("--to-torch", type=path, metavar="FILE", help="write a run's parameters as .safetensors, or .pth")
    add_checkpoint(parser)
    option(
        "--verify",
        type=path,
        metavar="DIR",
        help="run the forward passes recorded in a folder, with its weights, those of --from or those of --workdir; "
        "exit code 1 if an array is off",
    )
    option("--assemble", type=path, metavar="DIR", help="make a folder to sample from: a flow and its frozen models")
    option("--flow", type=path, metavar="DIR", help="with --assemble or --quantise: the folder of a run")
    option(
        "--autoencoder",
        type=read_path,
        metavar="PATH[:SCALE]",
        help="with --assemble: a diffusers folder, Wan2.2 file or .npz; of videos with its temporal scale",
    )
    option(
        "--text-encoder",
        type=read_path,
        metavar="DIR",
        help="with --assemble: a Hugging Face folder with its tokenizer",
    )
    option(
        "--place",
        type=choice(*choices(Transfer)),
        help="with --assemble: hard links where the file system has them, which take no space (default), or copies",
    )
    add_quantise(parser, "store the weights of the layers in fewer bits")
    option("--json", type=output_file, metavar="FILE", help="also write the report as JSON")
    add_model_config(parser, "whose values replace those of --config")
    add_mesh(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Runs the command; returns an exit code."""
    mode = _mode(arguments)
    if mode == "source":
        return _port(arguments)
    if mode == "to_torch":
        return _export(arguments)
    if mode == "flow":
        return _quantise(arguments)
    return _verify(arguments) if mode == "verify" else _assemble(arguments)


def _mode(arguments: argparse.Namespace) -> str:
    """Returns the requested mode; raises CommandError for invalid combinations of options."""
    modes = [name for name in _MODES if getattr(arguments, name) is not None]
    if modes == ["verify", "source"]:
        modes = ["verify"]
    if modes == ["assemble", "flow"]:
        modes = ["assemble"]
    if len(modes) != 1:
        ways = "; ".join(_MODES.values())
        raise CommandError(
            f"name one thing to do: {ways}; got {len(modes) or 'none'} of them (see starflow port --help)"
        )
    mode = modes[0]
    options = {name: getattr(arguments, name) for name in set().union(*_ALLOWED.values())}
    for name in sorted(name for name, value in options.items() if value is not None and value is not False):
        if name not in _ALLOWED[mode] and name != mode:
            flag = "--from" if name == "source" else f"--{name.replace('_', '-')}"
            raise CommandError(f"{flag} does not go with {_MODES[mode].split()[0 if mode != 'to_torch' else 2]}")
    if getattr(arguments, "overrides", None) and mode != "source":
        raise CommandError("--config.NAME=VALUE goes with --from")
    needed = {
        "assemble": ("flow", "autoencoder", "text_encoder"),
        "source": ("workdir",),
        "to_torch": ("workdir",),
        "flow": ("quantise", "workdir"),
    }
    missing = [f"--{name.replace('_', '-')}" for name in needed.get(mode, ()) if getattr(arguments, name) is None]
    if missing:
        raise CommandError(f"{', '.join(missing)} is missing: {_MODES[mode]}")
    if mode == "source" and arguments.config is None:
        raise CommandError("--config is missing: the experiment whose flow the tensors are")
    return mode


def _quiet(devices: bool = False) -> None:
    """Keeps JAX on the CPU unless `devices`, and silences Orbax's logs, whose errors the command reports itself."""
    import logging

    import jax

    if not devices:
        jax.config.update("jax_platforms", "cpu")
    for name in ("absl", "asyncio"):
        logging.getLogger(name).setLevel(logging.CRITICAL)


def _port(arguments: argparse.Namespace) -> int:
    _quiet(devices=arguments.mesh is not None)
    check_new_folder("--workdir", arguments.workdir)

    from starflow_jax.training.checkpoints.port_requests import PortRequest, open_porting, port_tensors

    config = _configuration(arguments)
    layout = layout_of_command(arguments) if arguments.mesh is not None else None
    request = build_request(PortRequest, arguments, config=config, layout=layout, origin=_origin(arguments.source))
    with sentences():
        porting = open_porting(request)
    for line in porting.fit.lines():
        print(line, file=sys.stderr)
    if porting.problem() is not None:
        if porting.left_aside:
            print(f"left out {porting.left_out()}", file=sys.stderr)
        _write_json(arguments, porting.figures() | {"written": False})
    with sentences():
        port_tensors(request, porting=porting)
    _write_json(arguments, porting.figures() | {"written": True, "workdir": str(request.workdir)})
    _print_porting(porting)
    print(f"run: {request.workdir}")
    return 0


def _origin(source: Path) -> str | None:
    """The address with its commit of a file on the Hub; None for another file."""
    name = shown(source)
    return name if is_hub_address(name) else None


def _print_porting(porting: Porting) -> None:
    """Prints what was written, and what was left out."""
    where = f" under {porting.state!r}" if porting.state else ""
    numbers = f"{porting.num_parameters:,} numbers of {len(porting.fit.usable())} tensors"
    print(f"{porting.config.name}: {numbers} from {porting.request.source}{where}")
    if ignored := porting.fit.ignored:
        more = ", ..." if len(ignored) > 6 else ""
        print(f"ignored {len(ignored)} buffers that nothing reads: {', '.join(ignored[:6])}{more}")
    if porting.renamed:
        print(f"renamed {porting.renamed} tensors by {porting.request.names}")
    if narrowed := porting.fit.narrowed:
        print(f"narrowed {len(narrowed)} tensors of float64 to float32, first {narrowed[0]}")
    if left_out := porting.left_out():
        print(f"left out {left_out}")
    if porting.fit.misfits:
        print(f"partial: {porting.misfits()}; missing parameters have their initial values")


def _configuration(arguments: argparse.Namespace) -> Any:
    """Returns the experiment with the values of a released file, if given, and then the command line's overrides."""
    import dataclasses

    from starflow_jax.core.config import load_config
    from starflow_jax.core.config.build import apply_overrides, build
    from starflow_jax.core.config.experiment_config import ExperimentConfig, with_quantise

    with sentences():
        if arguments.model_config is None:
            config = load_config(arguments.config, arguments.overrides)
        else:
            config = with_model_config(arguments, load_config(arguments.config))
            config = build(ExperimentConfig, apply_overrides(dataclasses.asdict(config), arguments.overrides))
        return config if arguments.quantise is None else with_quantise(config, arguments.quantise)


def _quantise(arguments: argparse.Namespace) -> int:
    _quiet()
    check_new_folder("--workdir", arguments.workdir)

    from starflow_jax.core.amounts import size_text
    from starflow_jax.training.checkpoints.quantise_run import QuantiseRequest, quantise_run

    request = build_request(QuantiseRequest, arguments, ema=not arguments.no_ema)
    with sentences():
        written = quantise_run(request)
    _write_json(arguments, written.to_dict() | {"workdir": str(request.workdir), "quantise": request.quantise})
    print(
        f"{written.name}: step {written.step} with {request.quantise} weights, parameters of "
        f"{size_text(written.bytes)} in place of {size_text(written.bytes_before)}"
    )
    print(f"run: {request.workdir}")
    return 0


def _export(arguments: argparse.Namespace) -> int:
    _quiet()
    check_writable("--to-torch", arguments.to_torch)

    from starflow_jax.training.checkpoints.port_requests import ExportRequest, export_run

    request = build_request(ExportRequest, arguments, ema=not arguments.no_ema)
    with sentences():
        exported = export_run(request)
    size = request.to_torch.stat().st_size
    figures = {"workdir": str(request.workdir), "step": exported.step, "bytes": size, "renamed": exported.renamed}
    _write_json(arguments, figures | {"written": True})
    print(f"{exported.name}: step {exported.step} as {request.to_torch}, {size / 1e6:,.1f} MB")
    return 0


def _verify(arguments: argparse.Namespace) -> int:
    from starflow_jax.core.figures import text_table
    from starflow_jax.evaluation.likelihood.recordings import VerifyRequest, verify_recordings

    request = build_request(VerifyRequest, arguments, ema=not arguments.no_ema)
    with sentences():
        compared = verify_recordings(request)
    rows = [("array", "relative error", "bar", "")]
    rows += [(one.array, f"{one.error:.2e}", f"{one.bar:.0e}", "" if one.passed else "OFF") for one in compared]
    print(text_table(rows))
    failed = [one for one in compared if not one.passed]
    figures = [{"array": one.array, "error": one.error, "bar": one.bar, "passed": one.passed} for one in compared]
    _write_json(arguments, {"recordings": str(request.verify), "arrays": figures, "passed": not failed})
    if failed:
        print(f"starflow: {len(failed)} of {len(compared)} arrays are off, first {failed[0].array}", file=sys.stderr)
    return 1 if failed else 0


def _assemble(arguments: argparse.Namespace) -> int:
    from starflow_jax.sampling.model_folder import AssembleRequest, assemble

    request = build_request(AssembleRequest, arguments, path=arguments.assemble)
    with sentences():
        model = assemble(request)
    parts = {"autoencoder": model.autoencoder, "text_encoder": model.text_encoder}
    figures = {name: {"kind": part.kind, "path": str(part.path)} for name, part in parts.items()}
    _write_json(arguments, {"path": str(model.path), "flow": str(model.flow), **figures})
    kinds = ", ".join(f"{name.replace('_', ' ')} {part.kind}" for name, part in parts.items())
    print(f"{model.path}: flow, {kinds}")
    return 0


def _write_json(arguments: argparse.Namespace, values: Mapping[str, Any]) -> None:
    if arguments.json is not None:
        from starflow_jax.core.figures import write_json

        write_json(arguments.json, values)
