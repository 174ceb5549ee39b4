"""A folder with everything that sampling from text needs: the run of a flow, an autoencoder and a text encoder.

`model.json` names the three by paths inside the folder:

    {"format": "starflow-model", "version": 1,
     "flow": "flow", "autoencoder": {"kind": "diffusers", "path": "autoencoder"},
     "text_encoder": {"kind": "huggingface", "path": "text_encoder"}}

The entry of an autoencoder of videos may have a "temporal_scale".
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from starflow_jax.core.atomic_writing import replacing_folder, write_text
from starflow_jax.core.choices import Transfer, choices
from starflow_jax.core.config.checks import check_choice
from starflow_jax.core.regular_files import check_file, read_json
from starflow_jax.core.storage.copies import local_path, without_optimizer
from starflow_jax.core.storage.places import is_hub_snapshot
from starflow_jax.models.autoencoders.storage import split_scale
from starflow_jax.training.inverse.inverse_folder import INVERSE_FOLDER, has_inverse

MODEL_FILE = "model.json"
_FORMAT, _VERSION = "starflow-model", 1

AutoencoderKind = Literal["diffusers", "wan2.2", "npz"]
TextEncoderKind = Literal["huggingface"]
_TENSORS = (".safetensors", ".bin", ".pth", ".pt", ".index.json")


@dataclass(frozen=True)
class Part:
    """A frozen model of the folder.

    Attributes:
      kind: for an autoencoder "diffusers" (a folder with config.json and tensors), "wan2.2" (one file of tensors in the
        layout of the original) or "npz" (a file of this project); for a text encoder "huggingface" (a folder).
      path: absolute path.
      temporal_scale: factor of latent frames after the first, for an autoencoder of videos.
    """

    kind: str
    path: Path
    temporal_scale: float = 1.0

    @property
    def with_scale(self) -> Path:
        """The path with the temporal scale, an argument of `load_autoencoder`."""
        return self.path if self.temporal_scale == 1 else Path(f"{self.path}:{self.temporal_scale:g}")


@dataclass(frozen=True)
class ModelFolder:
    """A folder to sample from.

    Attributes:
      path: of the folder; flow: the folder of a run; autoencoder, text_encoder: the frozen models.
    """

    path: Path
    flow: Path
    autoencoder: Part
    text_encoder: Part


def load_model_folder(path: Path | str) -> ModelFolder:
    """Reads model.json of a folder and checks that its parts exist and are of the stated kinds; loads no parameters.

    Raises:
      ValueError: the file is missing or of another format or version, a path leaves the folder, or a part is missing.
    """
    path = local_path(path, without_optimizer).absolute()
    file = path / MODEL_FILE
    try:
        check_file(file)
    except OSError as error:
        raise ValueError(f"{path} is not a model folder: {MODEL_FILE} {error.strerror or error}") from error
    content = read_json(file)
    if not isinstance(content, dict) or content.get("format") != _FORMAT:
        raise ValueError(f'{file} must have "format": "{_FORMAT}"')
    if content.get("version") != _VERSION:
        raise ValueError(f"{file} must be of version {_VERSION}, got {content.get('version')!r}")
    names = {"format", "version", "flow", "autoencoder", "text_encoder"}
    if set(content) != names:
        raise ValueError(f"{file} must have the fields {', '.join(sorted(names))}, got {', '.join(sorted(content))}")
    flow = _inside(file, content["flow"], "flow")
    check_flow(flow)
    autoencoder = read_part(file, content["autoencoder"], "autoencoder")
    text_encoder = read_part(file, content["text_encoder"], "text_encoder")
    return ModelFolder(path, flow, autoencoder, text_encoder)


@dataclass(frozen=True)
class AssembleRequest:
    """A request to make a model folder from parts in other folders.

    Attributes:
      path: of the model folder, new or empty.
      flow: folder of a run.
      autoencoder: a folder in the layout of diffusers, a file of the original Wan2.2 or a .npz file; "PATH:0.6" gives
        an autoencoder of videos the temporal scale 0.6.
      text_encoder: a folder in the layout of Hugging Face, with its tokenizer.
      place: "link" makes hard links, which take no space and survive the deletion of the originals, and copies files
        from other file systems; "copy" always copies.

    Raises:
      ValueError: an invalid `place`.
    """

    path: Path
    flow: Path
    autoencoder: Path
    text_encoder: Path
    place: Transfer = "link"

    def __post_init__(self) -> None:
        check_choice("place", self.place, choices(Transfer))


def assemble(request: AssembleRequest) -> ModelFolder:
    """Makes a model folder from parts in other folders, atomically.

    Raises:
      ValueError: a part is missing or of an unknown kind, or the folder is not empty.
      OSError: the folder cannot be written.
    """
    path, text_encoder, how = request.path, request.text_encoder, request.place
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise ValueError(f"{path} must be a new or an empty folder")
    check_flow(request.flow)
    parts = {"autoencoder": autoencoder_part(request.autoencoder), "text_encoder": text_encoder_part(text_encoder)}
    with replacing_folder(path.absolute()) as temporary:
        content: dict[str, Any] = {"format": _FORMAT, "version": _VERSION, "flow": "flow"}
        _add_run(request.flow, temporary / "flow", how)
        if has_inverse(request.flow):
            _add_run(request.flow / INVERSE_FOLDER, temporary / "flow" / INVERSE_FOLDER, how)
        for name, part in parts.items():
            _add(part.path, temporary / part_target(name, part), how)
            content[name] = part_entry(name, part)
        write_text(temporary / MODEL_FILE, json.dumps(content, indent=2) + "\n")
    return load_model_folder(path)


def autoencoder_part(path: Path) -> Part:
    """The autoencoder at a path, which may end in a temporal scale; ValueError where there is none of a known kind."""
    file, scale = split_scale(path)
    if not 0 < scale < 1e3 or (scale != 1 and file.suffix == ".npz"):
        raise ValueError(f"autoencoder {file} cannot have the temporal scale {scale:g}")
    return Part(autoencoder_kind(file), file, scale)


def text_encoder_part(path: Path) -> Part:
    """The text encoder at a path; ValueError where there is none."""
    return Part(text_encoder_kind(path), path)


def is_run(path: Path) -> bool:
    """Whether a folder looks like the working folder of a run with a checkpoint."""
    return (path / "config.json").is_file() and (path / "checkpoints").is_dir()


def check_flow(path: Path) -> None:
    """Raises ValueError unless `path` looks like the working folder of a run with a checkpoint."""
    if not is_run(path):
        raise ValueError(f"flow {path} is not a working folder of a run: it has no config.json and checkpoints")


def autoencoder_kind(path: Path) -> AutoencoderKind:
    """The kind of the autoencoder at a path, from its name and files.

    Raises:
      ValueError: there is no autoencoder of a known kind.
    """
    if path.is_dir() and (path / "config.json").is_file() and _holds_tensors(path):
        return "diffusers"
    if path.is_file() and path.suffix == ".npz":
        return "npz"
    if path.is_file() and path.suffix in (".pth", ".pt", ".safetensors"):
        return "wan2.2"
    raise ValueError(
        f"autoencoder {path} must be a diffusers folder (config.json and tensors), a file of the original Wan2.2 "
        "(.pth or .safetensors) or an .npz of this project"
    )


def text_encoder_kind(path: Path) -> TextEncoderKind:
    """The kind of the text encoder at a path.

    Raises:
      ValueError: there is no Hugging Face folder with a tokenizer.
    """
    if path.is_dir() and (path / "config.json").is_file() and _holds_tensors(path):
        if any((path / name).is_file() for name in ("spiece.model", "tokenizer.json", "tokenizer.model")):
            return "huggingface"
        raise ValueError(f"text encoder {path} has no tokenizer: spiece.model, tokenizer.json or tokenizer.model")
    raise ValueError(f"text encoder {path} must be a Hugging Face folder: config.json, tensors and a tokenizer")


def _holds_tensors(path: Path) -> bool:
    return any(file.name.endswith(_TENSORS) for file in path.iterdir() if file.is_file())


def read_part(file: Path, value: Any, name: str) -> Part:
    """The entry of a frozen model in a file that describes the folder around it.

    Raises:
      ValueError: it is not an entry, the path leaves the folder, or the part is missing or of another kind.
    """
    if not isinstance(value, Mapping) or not {"kind", "path"} <= set(value) or not isinstance(value["kind"], str):
        raise ValueError(f"{name} of {file} must have a kind and a path, got {value!r}")
    scale = value.get("temporal_scale", 1.0)
    fields = {"kind", "path", "temporal_scale"} if name == "autoencoder" else {"kind", "path"}
    if set(value) - fields or isinstance(scale, bool) or not isinstance(scale, int | float) or not 0 < scale < 1e3:
        raise ValueError(f"{name} of {file} must have only the fields {', '.join(sorted(fields))}, got {value!r}")
    part = Part(value["kind"], _inside(file, value["path"], name), float(scale))
    kind = autoencoder_kind(part.path) if name == "autoencoder" else text_encoder_kind(part.path)
    if part.kind != kind:
        raise ValueError(f"{name} of {file} is {kind!r} and not {part.kind!r}")
    return part


def part_target(name: str, part: Part) -> str:
    """The name of a frozen model in the folder of a model: of a folder, or of a file with its suffix."""
    return name if part.path.is_dir() else f"{name}{part.path.suffix}"


def part_entry(name: str, part: Part) -> dict[str, Any]:
    """The entry of a frozen model in the file that describes the folder around it."""
    entry: dict[str, Any] = {"kind": part.kind, "path": part_target(name, part)}
    return entry if part.temporal_scale == 1 else entry | {"temporal_scale": part.temporal_scale}


def _inside(file: Path, value: Any, name: str) -> Path:
    """The path of a part, which must not leave the folder of `file`, neither by its text nor through links."""
    folder = file.parent
    parts = PurePosixPath(value).parts if isinstance(value, str) and "\0" not in value else ()
    plain = bool(parts) and not any(part in ("..", "/") or "\\" in part or ":" in part for part in parts)
    path = folder.joinpath(*parts)
    # In the cache of huggingface_hub every file is a link, which its client made.
    if not plain or not (is_hub_snapshot(folder) or path.resolve().is_relative_to(folder.resolve())):
        raise ValueError(f"{name} of {file} must be a path inside the folder, got {value!r}")
    if not path.exists():
        raise ValueError(f"{name} of {file} is missing: {value}")
    return path


def _add_run(source: Path, target: Path, how: str) -> None:
    """Copies the configuration and the newest checkpoint of a run, without the records of its training."""
    target.mkdir()
    _add(source / "config.json", target / "config.json", "copy")
    steps = [path for path in (source / "checkpoints").iterdir() if path.name.isdecimal() and path.is_dir()]
    if not steps:
        raise ValueError(f"{source} contains no checkpoint")
    newest = max(steps, key=lambda path: int(path.name))
    _add(newest, target / "checkpoints" / newest.name, how)


def _add(source: Path, target: Path, how: str) -> None:
    """Copies or links a file, or all files of a folder, following symbolic links."""
    copy = _link if how == "link" else shutil.copy2
    if source.is_dir():
        shutil.copytree(source, target, copy_function=copy)
    else:
        copy(source, target)


def _link(source: Any, target: Any) -> Any:
    try:
        os.link(os.path.realpath(source), target)
    except OSError:  # another file system, or one without links
        return shutil.copy2(source, target)
    return target
