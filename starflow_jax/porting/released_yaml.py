"""Reads the released YAML configuration files and maps their arguments to fields of the configuration."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from starflow_jax.core.config.build import build
from starflow_jax.core.config.experiment_config import ExperimentConfig
from starflow_jax.core.config.flow_config import DenoiserConfig
from starflow_jax.porting import original_arguments
from starflow_jax.porting.original_arguments import flow_fields, layer_counts, switch, unchanged
from starflow_jax.porting.plain_yaml import read_plain_yaml, shortened

# Spatial downsampling factor of the autoencoder by its number of latent channels (specification, section 7).
_STRIDES = {3: 1, 4: 8, 16: 8, 48: 16}
_LATENT_CHANNELS = {"sd": 4, "wan2.1": 16, "wan2.2": 48}

_TRAIN = {
    "batch_size": "batch_size",
    "lr": "lr",
    "min_lr": "min_lr",
    "grad_clip": "grad_clip",
    "latent_norm_regularization": "latent_norm",
}
_DATA = {"noise_std": "noise_std", "drop_label": "label_drop"}
_SAMPLE = {"cfg": "guidance"}
# Arguments that need more than a renaming, handled below.
_READ = ("img_size", "vid_size", "layers_per_block", "learnable_self_denoiser", "conditional_denoiser",
         "denoiser_window", "in_channels", "vae", "grad_skip", "jacobi", "fps_cond")  # fmt: skip
# Arguments of the original programs that are set elsewhere or not needed in this project.
WITHOUT_MEANING = {
    "model_config_path": "the path of the file itself",
    "checkpoint_path": "starflow port --from",
    "resume_path": "starflow train resumes automatically",
    "caption": "starflow sample --caption",
    "sample_batch_size": "starflow sample --num",
    "aspect_ratio": "starflow sample --aspect",
    "seed": "starflow sample --seed",
    "out_fps": "starflow sample --fps",
    "target_length": "starflow sample --frames",
    "input_image": "starflow sample --image",
    "jacobi_th": "not taken from the file; starflow sample --tolerance",
    "jacobi_block_size": "not taken from the file; starflow sample --block",
    "jacobi_max_iter": "not taken from the file; starflow sample --max-iterations",
    "local_attn_window": "not taken from the file; starflow sample --window",
    "context_length": "not taken from the file; starflow sample --context",
    "epochs": "train.steps counts updates",
    "mix_aspect": "data.aspect_ratios",
    "secondary_ratio": "weights of data.mixture",
    "secondary_img_size": "a source of data.mixture",
    "drop_image": "data.drop_first",
    "fsdp": "config.mesh",
    "loss_scaling": "not needed with bfloat16",
    "grad_checkpoint": "flow.remat",
    "wandb_name": "starflow train --wandb",
    "dry_run": "starflow plan",
}


@dataclasses.dataclass(frozen=True)
class Released:
    """A released configuration file.

    Attributes:
      path: path of the file; arguments: arguments that are used, by the original's name.
      without_meaning: arguments that are not used, with their replacement; unknown: names of unknown arguments.
    """

    path: Path
    arguments: Mapping[str, Any]
    without_meaning: Mapping[str, str]
    unknown: tuple[str, ...]


def read_released(path: Path) -> Released:
    """Reads a released YAML file; groups of arguments under headings are flattened.

    Raises:
      ValueError: the file is missing, is not a YAML mapping of plain values, or gives an argument two values.
    """
    content = read_plain_yaml(path)
    if not isinstance(content, dict) or not content:
        raise ValueError(f"{path} must contain arguments and their values")
    arguments: dict[str, Any] = {}
    for key, value in content.items():
        group = value if isinstance(value, dict) else {key: value}
        for name, inner in group.items():
            if not isinstance(name, str) or isinstance(inner, dict):
                raise ValueError(f"{path} must contain arguments and plain values, got {str(name)[:80]!r}: a mapping")
            if name in arguments and arguments[name] != inner:
                raise ValueError(
                    f"{path} gives {name[:80]} twice, {shortened(repr(arguments[name]))} and {shortened(repr(inner))}"
                )
            arguments[name] = inner
    without = {name: WITHOUT_MEANING[name] for name in arguments if name in WITHOUT_MEANING}
    if scale := str(arguments.get("vae", "")).partition(":")[2]:
        without["vae"] = f"of its temporal scale; name the autoencoder as PATH:{scale}"
    known = {*original_arguments.FLOW, *_TRAIN, *_DATA, *_SAMPLE, *_READ}
    return Released(
        path,
        {name: value for name, value in arguments.items() if name in known},
        without,
        tuple(sorted(set(arguments) - known - set(WITHOUT_MEANING))),
    )


def apply_released(config: ExperimentConfig, released: Released) -> ExperimentConfig:
    """Replaces fields of the configuration by the values of a released file.

    Raises:
      ValueError: a value is invalid or inconsistent with the rest; the message names the file.
    """
    given = dict(released.arguments)
    values = dataclasses.asdict(config)
    flow, data, train, sample = (values[name] for name in ("flow", "data", "train", "sample"))
    try:
        flow.update(flow_fields(given))
        for names, target in ((_TRAIN, train), (_DATA, data), (_SAMPLE, sample)):
            target.update({names[name]: unchanged(name, value) for name, value in given.items() if name in names})
        _apply_rest(given, flow, data, train, sample)
        return build(ExperimentConfig, values)
    except ValueError as error:
        raise ValueError(f"{released.path}: {shortened(str(error), 200)}") from error


def _apply_rest(
    given: Mapping[str, Any], flow: dict[str, Any], data: dict[str, Any], train: dict[str, Any], sample: dict[str, Any]
) -> None:
    """Applies the arguments that need more than a renaming."""
    if "vae" in given:
        name = str(given["vae"]).lower().partition(":")[0]
        kinds = [channels for kind, channels in _LATENT_CHANNELS.items() if name.startswith(kind)]
        if not kinds:
            raise ValueError(f"vae must begin with one of {', '.join(_LATENT_CHANNELS)}, got {given['vae']!r}")
        flow["channels"] = kinds[0]
    if "in_channels" in given:
        flow["channels"] = unchanged("in_channels", given["in_channels"])
    if "img_size" in given:
        stride = _STRIDES.get(flow["channels"])
        pixels = given["img_size"]
        if stride is None or not isinstance(pixels, int) or pixels % stride:
            raise ValueError(f"img_size must be pixels, a multiple of the autoencoder's stride, got {pixels!r}")
        flow["image_size"] = pixels // stride
    if "vid_size" in given:
        frames, _, fps = str(given["vid_size"]).partition(":")
        if not frames.isdecimal() or (fps and not fps.isdecimal()) or max(len(frames), len(fps)) > 9:
            raise ValueError(f"vid_size must be FRAMES:RATE, got {given['vid_size']!r}")
        longest = 1 + (int(frames) - 1) // 4 if flow["channels"] in (16, 48) else int(frames)
        parts = data["mixture"] or (data,)
        before = max(part["frames"] for part in parts)
        for part in parts:
            if part["frames"] == before:
                part["frames"] = longest
                part["fps"] = float(fps) if fps else part["fps"]
        data["frames"] = longest
    if "fps_cond" in given:
        for part in data["mixture"] or (data,):
            part["captions"]["fps"] = switch("fps_cond", given["fps_cond"])
    if "layers_per_block" in given:
        flow["layers_per_block"] = layer_counts(given["layers_per_block"])
        if len(flow["layers_per_block"]) > 1:
            flow["num_blocks"] = given.get("num_blocks", len(flow["layers_per_block"]))
    if "learnable_self_denoiser" in given:
        if not switch("learnable_self_denoiser", given["learnable_self_denoiser"]):
            flow["denoiser"] = None
        elif flow["denoiser"] is None:
            flow["denoiser"] = dataclasses.asdict(DenoiserConfig())
    if flow["denoiser"] is not None:
        if "conditional_denoiser" in given:
            flow["denoiser"]["conditional"] = switch("conditional_denoiser", given["conditional_denoiser"])
        if "temporal_causal" in given:
            flow["denoiser"]["look_ahead"] = given["temporal_causal"] or None
        if "denoiser_window" in given:
            flow["denoiser"]["window"] = given["denoiser_window"] or None
    if "grad_skip" in given:
        train["skip_after"] = 100 if switch("grad_skip", given["grad_skip"]) else None
    if "jacobi" in given:
        sample["solver"] = "jacobi" if switch("jacobi", given["jacobi"]) else "sequential"
    data["noise"] = "gaussian" if data["noise_std"] else "uniform"
