"""Values that fields and command-line options allow, each stated once as a `Literal`.

Nothing is imported here that the command line could not afford for its help texts.
"""

from __future__ import annotations

import types
import typing
from typing import Any, Literal

# Precision in which networks are computed; parameters, norms, losses and sums are float32.
Dtype = Literal["float32", "bfloat16"]
# Part of a data set.
Split = Literal["train", "test"]
# What removes the training noise from samples.
Denoise = Literal["none", "score", "learned"]
# Learning rate schedule (`training.step.schedule`).
Schedule = Literal["tarflow", "starflow"]
# What the automatic solver makes small (`solvers.automatic.choice`).
Objective = Literal["time", "depth"]
# How images are resized for the Inception network (`evaluation.samples.inception`).
Resize = Literal["half-pixel", "tensorflow"]
# Which checkpoint a run goes on from (`training.checkpoints.resume`).
ResumePolicy = Literal["latest", "latest-good"]
# How files enter a model folder (`sampling.model_folder`).
Transfer = Literal["link", "copy"]
# Precision of stored latents (`data.sources.latents`).
LatentDtype = Literal["float16", "float32"]
# Programs that `starflow plan` compiles.
ProgramName = Literal["train", "inverse"]


def choices(annotation: Any, field: str | None = None) -> tuple[Any, ...]:
    """The values that a `Literal` allows, None first where the annotation is `Literal[...] | None`.

    Args:
      annotation: the `Literal`, or a dataclass.
      field: name of the field of that dataclass whose annotation is read.

    Raises:
      TypeError: the annotation is not a `Literal`, nor an optional one.
    """
    if field is not None:
        annotation = typing.get_type_hints(annotation)[field]
    members = typing.get_args(annotation)
    if typing.get_origin(annotation) is typing.Literal:
        return members
    if typing.get_origin(annotation) in (typing.Union, types.UnionType) and type(None) in members:
        inner = [member for member in members if member is not type(None)]
        if len(inner) == 1 and typing.get_origin(inner[0]) is typing.Literal:
            return (None, *typing.get_args(inner[0]))
    raise TypeError(f"annotation must be a Literal, got {annotation!r}")
