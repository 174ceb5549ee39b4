"""Every option of every command refuses bad values with one sentence, before anything is computed or written."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import re
import shutil
import signal
from itertools import chain
from pathlib import Path

import jax
import numpy as np
import pytest
from bad_option_values import bad_values, prepare
from picture_files import write_clip, write_photos
from random_flows import CLASSES, random_flow
from sweep_runs import params_of, write_run

from starflow_jax.cli import dispatch
from starflow_jax.cli.dispatch import build_parser, main
from starflow_jax.compression.file_format import Header, write_file
from starflow_jax.core.config import DataConfig, load_config
from starflow_jax.models.autoencoders import save_autoencoder
from starflow_jax.models.autoencoders.kl.model import AutoencoderKL
from starflow_jax.training.checkpoints import manager

EXPERIMENTS = Path(__file__).parents[1] / "experiments"
SECONDS = 20
# The arguments beside the option that is tested.
BASES = {
    "train": ["--config", "digits.py:tiny", "--workdir", "new"],
    "init": ["--data", "photos", "--out", "new.py"],
    "config": ["digits.py:tiny"],
    "doctor": ["--seconds", "1"],
    "info": ["--workdir", "run"],
    "report": ["--workdir", "run"],
    "sample": ["--workdir", "run", "--out", "new.png", "--num", "1"],
    "gallery": ["--workdir", "run", "--out", "new", "--num", "1"],
    "evaluate": ["--workdir", "run"],
    "score": ["--workdir", "clips", "--out", "new", "--num", "1"],
    "sweep": ["--config", "sweep.py", "--workdir", "run", "--out", "new"],
    "study": ["--workdir", "run", "--out", "new"],
    "compress": ["--workdir", "run", "--out", "new", "digits.npy"],
    "decompress": ["--workdir", "run", "--out", "new", "digits.sfz"],
    "draw-target": ["--workdir", "run", "--out", "new.npz", "--num", "2", "--target", "energies.py:log_density"],
    "video-quality": ["--video", "clip.gif", "--reference", "clip.gif", "--out", "new"],
    "vbench": ["--workdir", "clips", "--prompts", "overall_consistency.txt", "--out", "new"],
    "calibrate": ["--workdir", "run"],
    "train-inverse": ["--workdir", "run"],
    "post-train": ["--workdir", "run", "--out", "new", "--reward", "digit"],
    "edit": ["--workdir", "run", "--out", "new", "inpaint", "digits.npy", "--mask", "half:left", "--burn-in", "8"],
    "data": ["--config", "digits.py:tiny", "--seconds", "0"],
    "prepare": ["folder", "photos", "--out", "new"],
    "encode": ["--config", "digits.py:tiny", "--out", "new", "--fit-patch-pca", "2:1"],
    "train-autoencoder": ["--config", "tiny_vae.py:tiny", "--workdir", "new"],
    "finetune-decoder": ["--config", "tiny_vae.py:tiny_decoder", "--workdir", "new", "--autoencoder", "vae"],
    "plan": ["--config", "digits.py:tiny", "--topology", "h100:2"],
    "port": ["--from", "weights.safetensors", "--config", "digits.py:tiny", "--workdir", "new"],
    "publish": ["--workdir", "run", "--license", "mit", "--to", "hf://x/y"],
    "demo": ["--out", "new"],
    "studio": ["--workdir", "run"],
}
VIDEO_OPTIONS = {
    "--image",
    "--continue",
    "--video",
    "--frames",
    "--fps",
    "--aspect",
    "--window",
    "--context",
    "--caption",
}
METRIC_OPTIONS = {"--features", "--clip", "--real"}
# The other arguments of `port` for options of its other forms.
PORT = {
    "--to": ["--state", "model"],
    "--to-torch": ["--workdir", "run"],
    "--verify": ["--workdir", "run"],
    "--assemble": ["--flow", "run"],
    "--flow": ["--assemble", "new"],
    "--autoencoder": ["--assemble", "new", "--flow", "run"],
    "--text-encoder": ["--assemble", "new", "--flow", "run"],
}


# The operation, its inputs and other arguments of options of `edit` that `inpaint` does not take.
EDIT = {
    "--factor": ["upscale", "digits.npy"],
    "--operator": ["operator", "digits.npy"],
    "--num": ["interpolate", "digits.npy", "digits.npy"],
    "--to-class": ["attribute", "digits.npy"],
    "--to-caption": ["attribute", "digits.npy"],
    "--without": ["attribute", "digits.npy", "--having", "digits.npy"],
    "--having": ["attribute", "digits.npy", "--without", "digits.npy"],
    "--strength": ["attribute", "digits.npy", "--without", "digits.npy", "--having", "digits.npy"],
    "--leapfrog": ["inpaint", "digits.npy", "--mask", "half:left", "--moves", "hamiltonian"],
}


PARSER, PARSERS = build_parser()


def _cases():
    for command, parser in PARSERS.items():
        for action in parser._actions:
            options = [name for name in action.option_strings if name.startswith("--")]
            if options and action.nargs != 0:
                yield command, options[0], bad_values(command, options[0], action)


CASES = list(_cases())


def arguments(command: str, option: str) -> list[str]:
    """A call of the command that is refused for nothing but a bad value of the option."""
    base = list(BASES[command])
    if command in ("sample", "gallery") and option in VIDEO_OPTIONS:
        base = ["--workdir", "clips", "--out", "new.gif" if command == "sample" else "new", "--num", "1"]
    if command == "evaluate" and option in METRIC_OPTIONS:
        base += ["--metrics", "clip" if option == "--clip" else "fid", "--num-samples", "16"]
    if command == "evaluate" and option == "--clip":
        base += ["--workdir", "tokens", "--caption", "a seven"]
    if command == "post-train" and option == "--pairs":
        base += ["--method", "dpo"]
    if command == "port" and option in PORT:
        base = list(PORT[option])
    if command == "compress" and option in VIDEO_OPTIONS:
        base = ["--workdir", "clips", "--out", "new", "clip.gif"]
    if command == "edit" and option in EDIT:
        base = [*base[:4], *EDIT[option]]
    models = ("sample", "gallery", "compress", "decompress", "draw-target", "edit", "studio")
    if command in models and option == "--model":
        base = base[2:]
    for index in range(0, len(base), 2):
        if base[index] == option:
            del base[index : index + 2]
            break
    return [command, *base]


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A folder with runs, data and what bad paths refer to."""
    home = tmp_path_factory.mktemp("home")
    prepare(home)
    for name in ("digits.py", "tiny_vae.py"):
        (home / name).write_bytes((EXPERIMENTS / name).read_bytes())
    flow = dataclasses.replace(CLASSES, num_classes=10, image_size=8)
    (home / "energies.py").write_text("def log_density(x):\n    return -(x**2).sum(axis=(1, 2, 3))\n")
    write_run(home / "run", flow, DataConfig(label_drop=0.1), {4: params_of(random_flow(flow))})
    clips = load_config(str(EXPERIMENTS / "moving_digits.py") + ":tiny")
    write_run(home / "clips", clips.flow, clips.data, {4: params_of(random_flow(clips.flow))}, text=clips.text)
    tokens = load_config(str(EXPERIMENTS / "digits_tokens.py") + ":tiny")
    write_run(home / "tokens", tokens.flow, tokens.data, {4: params_of(random_flow(tokens.flow))}, text=tokens.text)
    (home / "sweep.py").write_bytes((EXPERIMENTS / "sweeps" / "digits.py").read_bytes())
    with contextlib.chdir(home):
        assert main(["port", "--workdir", "run", "--to-torch", "weights.safetensors"]) == 0
    write_clip(home / "clip.gif", clips.data.frames, size=(clips.flow.image_size, clips.flow.image_size))
    write_photos(home, {"photos": [(8, 8), (8, 8)]}, captions=False)
    np.save(home / "digits.npy", np.zeros((1, 8, 8, 1), np.uint8))
    sizes = (17, 1, 0, 8, 8, 1, 1, 4, 8, 0, 0)
    header = Header(*sizes, captions=(), environment=("", "", "", ""), fingerprint=bytes(8), probe=bytes(4), pixels=0)
    (home / "digits.sfz").write_bytes(write_file(header, b""))
    autoencoder = AutoencoderKL((4, 4), layers_per_block=1, norm_num_groups=2)
    params = jax.tree.map(lambda leaf: np.ones(leaf.shape, np.float32), autoencoder.abstract()[1])
    save_autoencoder(home / "vae", autoencoder, params)
    (home / "overall_consistency.txt").write_text("a two moving up\n")
    return home


def pieces(value: str) -> list[str]:
    """The parts of a value that a message may quote."""
    return [piece[:20] for piece in re.split(r"[:,=]", value) if len(piece.strip()) > 1]


def contents(folder: Path) -> set[str]:
    return {os.path.join(place, name) for place, *names in os.walk(folder) for name in chain(*names)}


@pytest.fixture(scope="module")
def arrays_are_read_once():
    """Most commands open a run before they refuse an option, and no bad value changes the files of a run."""
    read, kept = manager.read_arrays, {}

    def once(folder, name, like, digests):
        key = (Path(folder).absolute(), name, str(like))
        if key not in kept:
            kept[key] = read(folder, name, like, digests)
        return kept[key]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(manager, "read_arrays", once)
        yield


class TooLong(Exception):
    pass


@pytest.mark.parametrize(
    ("command", "option", "values"), [pytest.param(*case, id=" ".join(case[:2])) for case in CASES]
)
def test_bad_values_are_refused(command, option, values, home, arrays_are_read_once, monkeypatch, capfd):
    monkeypatch.chdir(home)
    monkeypatch.setattr(dispatch, "build_parser", lambda: (PARSER, PARSERS))  # building it takes most of the time

    def too_long(*_):
        raise TooLong

    signal.signal(signal.SIGALRM, too_long)
    before, everything, wrong = set(os.listdir(home)), contents(home), []
    for value in values:
        signal.alarm(SECONDS)
        try:
            code = main([*arguments(command, option), f"{option}={value}"])
        except BaseException as error:  # an error that reaches the user as a traceback
            code = f"{type(error).__name__}: {str(error)[:200]}"
        finally:
            signal.alarm(0)
        message = capfd.readouterr().err.strip()
        lines = message.splitlines()
        if code != 2:
            wrong.append(f"{value[:40]!r}: {code}, {message[-200:]!r}")
        elif len(lines) != 1 or "Traceback" in message or not message.startswith("starflow: "):
            wrong.append(f"{value[:40]!r}: prints {message[:300]!r}")
        elif not any(part in message for part in (option, *pieces(value))):
            wrong.append(f"{value[:40]!r}: names neither the option nor the value: {message[:300]!r}")
        if new := set(os.listdir(home)) - before:
            wrong.append(f"{value[:40]!r}: leaves {sorted(new)[:5]}")
            for name in new:
                shutil.rmtree(home / name) if (home / name).is_dir() else (home / name).unlink()
    if new := contents(home) - everything:  # at any depth; seconds for every value, hence once for all
        wrong.append(f"a value leaves {sorted(new)[:5]}")
    assert not wrong, "\n".join(wrong)
