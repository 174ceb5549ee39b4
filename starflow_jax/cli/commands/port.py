"""`starflow port`: converts released weights to a run, and a run to a PyTorch file."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from starflow_jax.cli.errors import CommandError, sentences
from starflow_jax.cli.options.arguments import choice, integer
from starflow_jax.cli.options.devices import add_mesh, layout_of_command
from starflow_jax.cli.options.model_config import add_model_config, with_model_config
from starflow_jax.cli.options.outputs import check_new_folder, check_writable
from starflow_jax.core.choices import Transfer, choices

ORDER = 160
OVERRIDABLE = True

DESCRIPTION = """\
Turns files of the PyTorch originals (STARFlow, STARFlow-V, TARFlow) into the folder of a run, and back.

Files are .pth, .pt or .bin of torch.save, .safetensors, an index of several such files, or a folder of
torch.distributed.checkpoint; PyTorch is not needed, and nothing in a file is executed. Tensors are read and written
one by one, so a model of any size needs a few of its layers in memory. Every tensor that is missing, unexpected or of
another shape is listed, and then nothing is written. The run is at step 0 and holds parameters alone: starflow sample,
evaluate, score and info take it as it is, and starflow train begins from it."""

EXAMPLES = """\
examples:
  starflow port --from starflow_3B_t2i_256x256.pth --config experiments/starflow_3b_t2i.py --workdir runs/3b
  starflow port --from afhq.pth --config experiments/tarflow_afhq256.py --workdir runs/afhq --infer
  starflow port --workdir runs/3b --to-torch weights.safetensors
  starflow port --verify tests/goldens/starflow_image --json errors.json
  starflow port --assemble model --flow runs/3b --autoencoder sd-vae --text-encoder flan-t5-xl

docs/porting.md has the commands for the released weights.
"""

_MODES = {
    "verify": "--verify DIR",
    "assemble": "--assemble DIR --flow DIR --autoencoder PATH --text-encoder DIR",
    "to_torch": "--workdir DIR --to-torch FILE",
    "source": "--from PATH --config FILE --workdir DIR",
}
# The options that each of the four modes accepts.
_ALLOWED = {
    "verify": {"source", "state", "workdir", "step", "no_ema"},
    "assemble": {"flow", "autoencoder", "text_encoder", "place"},
    "to_torch": {"workdir", "step", "no_ema"},
    "source": {"config", "model_config", "ignore_unknown", "workdir", "state", "infer", "allow_partial", "mesh"},
}


def add_to(subparsers: Any) -> None:
    """Declares the command."""
    parser = subparsers.add_parser(
        "port", help="released weights to a run, and back", description=DESCRIPTION, epilog=EXAMPLES
    )
    option = parser.add_argument
    option("--from", dest="source", type=Path, metavar="PATH", help="a file or folder of tensors")
    option("--config", metavar="FILE[:VARIANT]", help="the experiment whose flow the tensors are")
    option(
        "--workdir",
        "--to",
        type=Path,
        metavar="DIR",
        help="folder of the run: new or empty, or with --to-torch its own",
    )
    option("--state", metavar="KEY", help="which state of a file that holds several, such as model or ema")
    option("--infer", action="store_true", help="take from the file what its tensors decide, instead of --config")
    option(
        "--allow-partial",
        action="store_true",
        help="write although tensors are missing (they keep their initial values), unexpected or of another shape",
    )
    option("--to-torch", type=Path, metavar="FILE", help="write a run's parameters as .safetensors, or .pth")
    option("--step", type=integer(0), metavar="N", help="which checkpoint (default: the newest)")
    option("--no-ema", action="store_true", help="use the last parameters, not their running mean")
    option(
        "--verify",
        type=Path,
        metavar="DIR",
        help="run the forward passes recorded in a folder, with its weights, those of --from or those of --workdir; "
        "exit code 1 if an array is off",
    )
    option("--assemble", type=Path, metavar="DIR", help="make a folder to draw from: a flow and its frozen models")
    option("--flow", type=Path, metavar="DIR", help="with --assemble: the folder of a run")
    option(
        "--autoencoder",
        type=Path,
        metavar="PATH[:SCALE]",
        help="with --assemble: a diffusers folder, Wan2.2 file or .npz; of videos with its temporal scale",
    )
    option("--text-encoder", type=Path, metavar="DIR", help="with --assemble: a Hugging Face folder with its tokenizer")
    option(
        "--place",
        type=choice(*choices(Transfer)),
        help="with --assemble: hard links where the file system has them, which take no space (default), or copies",
    )
    option("--json", type=Path, metavar="FILE", help="also write the report as JSON")
    add_model_config(parser, "whose values replace those of --config")
    add_mesh(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Runs the command; returns an exit code."""
    mode = _mode(arguments)
    if arguments.json is not None:
        check_writable("--json", arguments.json)
    if mode == "source":
        return _port(arguments)
    if mode == "to_torch":
        return _export(arguments)
    return _verify(arguments) if mode == "verify" else _assemble(arguments)


def _mode(arguments: argparse.Namespace) -> str:
    """Returns the requested mode; raises CommandError for invalid combinations of options."""
    found = [name for name in _MODES if getattr(arguments, name) is not None]
    if found == ["verify", "source"]:
        found = ["verify"]
    if len(found) != 1:
        ways = "; ".join(_MODES.values())
        raise CommandError(
            f"name one thing to do: {ways}; got {len(found) or 'none'} of them (see starflow port --help)"
        )
    mode = found[0]
    options = {name: getattr(arguments, name) for name in set().union(*_ALLOWED.values())}
    for name in sorted(name for name, value in options.items() if value is not None and value is not False):
        if name not in _ALLOWED[mode] and name != mode:
            flag = "--from" if name == "source" else f"--{name.replace('_', '-')}"
            raise CommandError(f"{flag} does not go with {_MODES[mode].split()[0 if mode != 'to_torch' else 2]}")
    if getattr(arguments, "overrides", None) and mode != "source":
        raise CommandError("--config.NAME=VALUE goes with --from")
    needed = {"assemble": ("flow", "autoencoder", "text_encoder"), "source": ("workdir",), "to_torch": ("workdir",)}
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
    import dataclasses

    _quiet(devices=arguments.mesh is not None)
    check_new_folder("--workdir", arguments.workdir)

    from starflow_jax.flows.parameters import abstract
    from starflow_jax.porting import open_tensors
    from starflow_jax.porting.fit import fit
    from starflow_jax.porting.infer import with_inferred
    from starflow_jax.porting.tensor_names import entries
    from starflow_jax.sharding.mesh import check_fit
    from starflow_jax.tensor_formats.model_states import choose, states_of
    from starflow_jax.training.checkpoints.ported import write_run

    config = _configuration(arguments)
    with sentences():
        tensors = open_tensors(arguments.source)
    with sentences(states_of, choose):
        state, own = choose(states_of(tensors), arguments.state)
    if arguments.infer:
        with sentences():
            config = dataclasses.replace(config, flow=with_inferred(config.flow, own))
    layout = layout_of_command(arguments) if arguments.mesh is not None else None
    if layout is not None:
        with sentences(check_fit):
            check_fit(layout, config.flow, layout.mesh.size)
    found = fit(own, entries(abstract(config.flow)[1]), config.flow)
    report = {
        "from": str(arguments.source),
        "state": state,
        "tensors": len(own),
        "left_aside": len(tensors) - len(own),
        "ignored": list(found.ignored),
        "contradictions": list(found.contradictions),
        "misfits": [dataclasses.asdict(misfit) for misfit in found.misfits],
        "parameters": sum(tensor.size for name, tensor in own.items() if name in found.usable()),
        "written": False,
    }
    for line in found.lines():
        print(line, file=sys.stderr)
    if not found.is_good and not arguments.allow_partial:
        _write_json(arguments, report)
        counts = _counts(found.misfits)
        raise CommandError(f"nothing was written: {arguments.source} does not fit {arguments.config}: {counts}")
    if not found.usable():
        raise CommandError(f"nothing was written: no tensor of {arguments.source} fits {arguments.config}")
    with sentences():
        write_run(arguments.workdir, config, own, found.usable(), layout)
    _write_json(arguments, report | {"written": True, "workdir": str(arguments.workdir)})
    where = f" under {state!r}" if state else ""
    numbers = f"{report['parameters']:,} numbers of {len(found.usable())} tensors"
    print(f"{config.name}: {numbers} from {arguments.source}{where}")
    if found.ignored:
        print(
            f"ignored {len(found.ignored)} deprecated buffers: {', '.join(found.ignored[:6])}"
            + (", ..." if len(found.ignored) > 6 else "")
        )
    if report["left_aside"]:
        print(f"left aside {report['left_aside']} tensors that are no weights of this state")
    if found.misfits:
        print(f"partial: {_counts(found.misfits)}; what is missing has its initial values")
    print(f"run: {arguments.workdir}")
    return 0


def _configuration(arguments: argparse.Namespace) -> Any:
    """Returns the experiment with the values of a released file, if given, and then the command line's overrides."""
    import dataclasses

    from starflow_jax.core.config import load_config
    from starflow_jax.core.config.build import apply_overrides, build
    from starflow_jax.core.config.experiment_config import ExperimentConfig

    with sentences():
        if arguments.model_config is None:
            return load_config(arguments.config, arguments.overrides)
        config = with_model_config(arguments, load_config(arguments.config))
        return build(ExperimentConfig, apply_overrides(dataclasses.asdict(config), arguments.overrides))


def _counts(misfits: Any) -> str:
    words = {"missing": "missing", "unexpected": "unexpected", "shape": "of another shape", "type": "of another type"}
    counts = {kind: sum(misfit.kind == kind for misfit in misfits) for kind in words}
    return ", ".join(f"{count} {words[kind]}" for kind, count in counts.items() if count)


def _export(arguments: argparse.Namespace) -> int:
    _quiet()
    check_writable("--to-torch", arguments.to_torch)

    from starflow_jax.tensor_formats.tensor_writing import SUFFIXES
    from starflow_jax.training.checkpoints.ported import write_torch_file
    from starflow_jax.training.checkpoints.workdir import read_config

    if arguments.to_torch.suffix not in SUFFIXES:
        raise CommandError(f"--to-torch must end in {', '.join(SUFFIXES)}, got {str(arguments.to_torch)!r}")
    with sentences():
        config = read_config(arguments.workdir)
        if config is None:
            raise CommandError(f"workdir {arguments.workdir} holds no training run")
        arguments.to_torch.parent.mkdir(parents=True, exist_ok=True)
        step = write_torch_file(arguments.to_torch, arguments.workdir, config, arguments.step, ema=not arguments.no_ema)
    size = arguments.to_torch.stat().st_size
    _write_json(arguments, {"workdir": str(arguments.workdir), "step": step, "bytes": size, "written": True})
    print(f"{config.name}: step {step} as {arguments.to_torch}, {size / 1e6:,.1f} MB")
    return 0


def _verify(arguments: argparse.Namespace) -> int:
    import jax
    import jax.numpy as jnp

    from starflow_jax.core.figures import text_table
    from starflow_jax.evaluation.likelihood.recordings import compare, read_recordings
    from starflow_jax.flows.parameters import abstract, merge
    from starflow_jax.porting import from_torch, open_tensors
    from starflow_jax.tensor_formats.model_states import choose, states_of
    from starflow_jax.training import load_run

    if arguments.workdir is not None and arguments.source is not None:
        raise CommandError("--verify takes the weights of --from or of --workdir, got both")
    with sentences():
        recordings = read_recordings(arguments.verify)
    definition, expected = abstract(recordings.config)
    with sentences():
        if arguments.workdir is not None:
            config, definition, params, _ = load_run(arguments.workdir, ema=not arguments.no_ema, step=arguments.step)
            if config.flow != recordings.config:
                raise CommandError(f"the flow of {arguments.workdir} is not the one recorded in {arguments.verify}")
        else:
            weights = arguments.source or arguments.verify / "weights.safetensors"
            _, own = choose(states_of(open_tensors(weights)), arguments.state)
            values: Mapping[str, Any] = {name: tensor.read() for name, tensor in own.items()}
            params = jax.tree.map(jnp.asarray, from_torch(values, expected))
    with sentences():
        try:
            compared = compare(merge(definition, params), recordings)
        except KeyError as error:
            raise ValueError(f"{arguments.verify} lacks the recorded array {error}") from error
    rows = [("array", "relative error", "bar", "")]
    rows += [(one.array, f"{one.error:.2e}", f"{one.bar:.0e}", "" if one.passed else "OFF") for one in compared]
    print(text_table(rows))
    off = [one for one in compared if not one.passed]
    figures = [{"array": one.array, "error": one.error, "bar": one.bar, "passed": one.passed} for one in compared]
    _write_json(arguments, {"recordings": str(arguments.verify), "arrays": figures, "passed": not off})
    if off:
        print(f"starflow: {len(off)} of {len(compared)} arrays are off, first {off[0].array}", file=sys.stderr)
    return 1 if off else 0


def _assemble(arguments: argparse.Namespace) -> int:
    from starflow_jax.sampling.model_folder import assemble

    with sentences():
        model = assemble(
            arguments.assemble,
            arguments.flow,
            arguments.autoencoder,
            arguments.text_encoder,
            how=arguments.place or "link",
        )
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
