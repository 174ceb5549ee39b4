"""Values that every option must refuse, by the type that the command line declares for the option."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

HUGE = "1" + "0" * 30
LONG = "x" * 300  # longer than a component of a path may be
NUMBERS = ("", " ", "x", "nan", "inf", "-inf", "1,5", "--", "0x10", f"-{HUGE}", "1e400", "None")
INTEGERS = (*NUMBERS, "1.5", "1e30", HUGE)
REALS = (*NUMBERS, "1e30", "-1e30", HUGE)
WORDS = ("", " ", "x", "NONE,", "0", "true", LONG, "\x00")

# Paths in the folder that `prepare` fills.
# The last two are addresses: one lost a slash, and one goes up.
_NO_PATHS = ("", "file/below", LONG, f"{LONG}/below", "nul\x00byte", "gs:/slash/lost", "s3://bucket/../x")
_NO_INPUTS = (*_NO_PATHS, "missing", "pipe")
INPUTS = {
    "file": (*_NO_INPUTS, "folder", "empty", "garbage", "/dev/null"),
    "folder": (*_NO_INPUTS, "file", "folder", "garbage"),
    "either": (*_NO_INPUTS, "folder", "empty", "garbage"),
}
OUTPUTS = {
    "file": (*_NO_PATHS, "folder", "pipe", "/proc/x/y"),
    "folder": (*_NO_PATHS, "file", "pipe", "/proc/x/y"),
}
MISSING_ALLOWED = {"folder": (*_NO_PATHS, "pipe")}  # a remark says what is missing

# Whether the path of an option is read or written, and what it names; an option of one command goes before all.
PATHS: dict[str, tuple[dict[str, tuple[str, ...]], str]] = {
    "--json": (OUTPUTS, "file"),
    "data --workdir": (MISSING_ALLOWED, "folder"),
    "doctor --workdir": ({"folder": (*MISSING_ALLOWED["folder"], "s3://bucket/run")}, "folder"),
    "--out": (OUTPUTS, "folder"),
    "init --out": (OUTPUTS, "file"),
    "data --out": (OUTPUTS, "file"),
    "report --out": (OUTPUTS, "file"),
    "compress --out": (OUTPUTS, "file"),
    "draw-target --out": (OUTPUTS, "file"),
    "edit --out": (OUTPUTS, "folder"),
    "edit --checkpoint": (OUTPUTS, "folder"),
    "--notes": (INPUTS, "file"),
    "train --workdir": (OUTPUTS, "folder"),
    "train-autoencoder --workdir": (OUTPUTS, "folder"),
    "finetune-decoder --workdir": (OUTPUTS, "folder"),
    "port --assemble": (OUTPUTS, "folder"),
    "port --workdir": (OUTPUTS, "folder"),
    "port --to": (OUTPUTS, "folder"),
    "port --to-torch": (OUTPUTS, "file"),
    "port --from": (INPUTS, "file"),
    "port --verify": (INPUTS, "folder"),
    "port --names": (INPUTS, "file"),
    "--image": (INPUTS, "file"),
    "--continue": (INPUTS, "either"),
    "--video": (INPUTS, "either"),
    "--real": (INPUTS, "either"),
    "--reference": (INPUTS, "either"),
    "--prompts": (INPUTS, "either"),
    "--model-config": (INPUTS, "file"),
    "--config": (INPUTS, "file"),
    "--pairs": (INPUTS, "file"),
    "--without": (INPUTS, "either"),
    "--having": (INPUTS, "either"),
}

# Options whose text is parsed by the command. What is not here and has no type takes any text.
TEXTS = {
    "--listen": ("", "x", "localhost", "1.2.3", "256.1.1.1", "1.2.3.4:5", "[::]", "nan", LONG),
    "--host": ("", " ", "x", "1.2.3", "256.1.1.1", "1.2.3.4:5", "[::1]", "fe80::1%eth0", "nan", LONG, "\x00"),
    "publish --to": (
        "",
        "x",
        "folder",
        "hf://x",
        "hf:/x/y",
        "hf://x/y@main",
        "hf://x/y/z",
        "hf://x/..",
        "gs://x/y",
        LONG,
    ),
    "--license": ("", " ", "M I T", "-x", "a/b", LONG, "\x00"),
    "--revision": ("", " ", "a b", "-x", "../x", LONG, "\x00"),
    "--profile": ("", "x", "1", "1:", ":2", "5:1", "-1:2", "1:2:3", f"1:{HUGE}", "1e1:2", "nan:2"),
    "--coordinator": ("", "x", "host", "host:", ":1", "host:x", "host:0", "host:99999999"),
    "--mesh": ("", ",", "x", "data", "data=", "data=0", "data=-2", "data=3", "data=1,data=1", "x=1", f"data={HUGE}"),
    "--aspect": ("", "x", "16", "16:", ":9", "0:1", "-1:2", "1:2:3", "nan:1", "inf:1", f"1:{HUGE}", "1e30:1"),
    "--size": ("", "x", "16", "16x", "x9", "0x1", "-1x2", "1x2x3", "nanx1", f"1x{HUGE}", f"{HUGE}x{HUGE}"),
    "--topology": ("", "x", "v5e", "v5e:", ":4x4", "v5e:0x4", "v5e:-2x2", "v5e:3x", f"v5e:{HUGE}x2", "v99:2x2"),
    "--fit-patch-pca": ("", "x", "4", "4:", ":4", "0:4", "4:0", "-1:4", "1:2:3", "nan:1", f"4:{HUGE}"),
    "--metrics": ("", ",", "x", "fid,", "fid,x", "fid,fid,x", "FID", LONG),
    "evaluate --guidance": ("", ",", "x", "1,", "1,x", "nan", "inf", "-1", "1e400", "1e30", HUGE),
    "prepare --features": (
        "",
        ",",
        "x",
        "caption",
        "caption=",
        "=x",
        "image=x",
        "caption=x,",
        "caption=x,caption=y",
        LONG,
    ),
    "prepare --splits": ("", ",", "x", "train=", "=train", "train=test", "train,train", "train,", "a/b", LONG),
    "--features": ("", "x:", ":x", "missing", "json:missing", "missing:x", "folder", "empty", "garbage", LONG, "pipe"),
    "--reward": ("", "x", "x:", ":x", "x y:z", "a:b:c", "missing.py:f", "clip:", "clip:x", "file.py:", LONG, "\x00"),
    "draw-target --target": ("", "x", "x:", ":x", "x:y", "missing.py:f", "file.py:", "x.py:a b", LONG, "\x00"),
    "--judge": ("", "x", "x:", ":x", "x y:z", "a:b:c", "missing.py:f", "clip:", "clip:x", "file.py:", LONG, "\x00"),
    "--mask": (
        "",
        "x",
        "half:",
        "half:up",
        "frames:1",
        "frames:5-2",
        "box:0,0,9,9",
        "box:1,2,3",
        "folder",
        "empty",
        "garbage",
        LONG,
    ),
    "--operator": ("", "x", "x:", ":x", "x y:z", "a:b:c", "missing.py:f", "file.py:", LONG, "\x00"),
    "edit --class": ("", "x", "-1", "1.5", "10", HUGE, "nan", "every"),
    "--to-class": ("", "x", "-1", "1.5", "10", HUGE, "nan", "every"),
    "--to-caption": ("a seven",),
    "--clip": ("", "x", "x:", ":x", "x y:z", "a:b:c", "/x/y.py:z", LONG),
    "--class": ("", "x", "-1", "1.5", "10", HUGE, "nan", "every"),
    "--caption": ("missing.txt", "empty.txt", "folder.txt", "garbage.txt", "pipe.txt", f"{LONG}.txt"),
    "--real-caption": ("missing.txt", "empty.txt", "folder.txt", "garbage.txt", "pipe.txt", f"{LONG}.txt"),
}
# Options of free text: a name of a project or of a key, a sentence.
FREE = {"train --wandb", "port --weights", "port --state", "score --caption", "publish --message"}


def prepare(folder: Path) -> None:
    """Creates what the values of paths refer to: `file`, `folder`, `empty`, `garbage` and a named pipe."""
    (folder / "file").write_text("a file")
    (folder / "folder").mkdir()
    (folder / "folder" / "letter.md").write_text("a letter")
    (folder / "folder.txt").mkdir()
    (folder / "empty").touch()
    (folder / "empty.txt").touch()
    (folder / "garbage").write_bytes(bytes(range(256)) * 8)
    (folder / "garbage.txt").write_bytes(bytes(range(256)))
    os.mkfifo(folder / "pipe")
    os.mkfifo(folder / "pipe.txt")


def bad_values(command: str, option: str, action: argparse.Action) -> tuple[str, ...]:
    """Values that `command` must refuse for `option`.

    Raises:
      LookupError: the option has a type that this file does not know; it must be given values here.
    """
    if f"{command} {option}" in FREE:
        return ()
    for name in (f"{command} {option}", option):
        if name in TEXTS:
            return TEXTS[name]
        if name in PATHS:
            kinds, kind = PATHS[name]
            return kinds[kind]
    declared = str(getattr(action.type, "__qualname__", "")).partition(".")[0]
    if declared == "integer":
        return INTEGERS
    if declared == "real":
        return REALS
    if declared == "choice":
        return WORDS
    if declared in (
        "path",
        "read_path",
        "model_path",
        "run_path",
        "runs_path",
        "work_path",
        "outline_path",
    ):  # runs, frozen models
        return INPUTS["folder"]
    raise LookupError(f"give bad values for {command} {option}")
