"""Allowed values of fields and command-line options, each defined once as a `Literal`.

This module imports only the standard library, so that the command line can print its help texts quickly.
"""

from __future__ import annotations

import types
import typing
from typing import Any, Literal

# Compute dtype of networks; parameters, norms, losses and reductions are float32.
Dtype = Literal["float32", "bfloat16"]
# Split of a data set.
Split = Literal["train", "test"]
# Colour that transparent pixels of image and video files are composed onto (`media.displayed_images`).
Background = Literal["white", "grey", "black"]
# Where the key of a member of a tar ends: at this dot of the last component of its name (`data.sources.tars`).
TarKeys = Literal["first dot", "last dot"]
# Whether a text file is one caption, or its lines are alternatives (`data.sources.caption_files`).
CaptionLines = Literal["one", "alternatives"]
# What `starflow prepare` reads.
PreparedKind = Literal["folder", "tar", "parquet", "tfds"]
# Method that removes the training noise from samples.
Denoise = Literal["none", "score", "learned", "iterative", "iterative-learned"]
# Step between two noise levels of an iterative method (`flows.iterative_denoise`).
DenoiseStep = Literal["ode", "sde"]
# Distribution of the noise level of a training example (`training.step.noise_levels`).
LevelDistribution = Literal["uniform", "linear", "edm"]
# Weight of a training example by its noise level (`training.step.noise_levels`).
LevelWeight = Literal["ones", "level", "square", "normalised"]
# Norms in front of the branches of a transformer's layers, and their MLPs (`nn.branch_norm`, `nn.transformer`).
Norm = Literal["layer", "rms", "adaptive"]
MLPKind = Literal["gelu", "gated", "swiglu"]
# Positions of a flow without rotary ones (`flows.positions`).
Positions = Literal["learned", "sinusoidal"]
# Parametrisation of the scale of an affine block (`flows.affine_head`).
Scale = Literal["softplus", "exp", "unit"]
# Formula of classifier-free guidance, by the family and by what is guided: mean (a) or scale (b) (`flows.guidance`).
GuidanceKind = Literal["ratio", "ab", "a", "b"]
# Options that solvers share, in configurations and on the command line (`solvers.named`).
SolverOption = Literal["block", "modules", "tolerance", "max_iterations", "objective", "target_error"]
# Start of the warm-up, and decay of the learning rate (`training.step.learning_rate_schedule`).
Schedule = Literal["tarflow", "starflow"]
LearningRateDecay = Literal["cosine", "linear", "constant"]
# Objective that the automatic solver minimises (`solvers.automatic.block_solver_choice`).
Objective = Literal["time", "depth"]
# How images are resized for the Inception network (`evaluation.samples.features.inception`).
Resize = Literal["half-pixel", "tensorflow", "clean"]
# Checkpoint from which a run resumes (`training.checkpoints.resume`).
ResumePolicy = Literal["latest", "latest-good"]
# How files are transferred into a model folder (`sampling.model_folder`).
Transfer = Literal["link", "copy"]
# Dtype of stored latents (`data.sources.latents`).
LatentDtype = Literal["float16", "float32"]
# Parameters that the loops of an inverse read: cast and gathered once beforehand, or as stored (`nn.ready_parameters`).
ParameterForm = Literal["ready", "stored"]
# How a flow is trained on a reward (`post_training`), and how the advantages of a group of samples are scaled.
PostTrainingMethod = Literal["policy-gradient", "dpo"]
AdvantageScale = Literal["centred", "standardised"]
# What `starflow edit` does, and what the chains of its inverse problems move (`editing.chains`).
EditOperation = Literal["inpaint", "upscale", "denoise", "colourise", "operator", "interpolate", "attribute"]
ChainMoves = Literal["mala", "hamiltonian", "langevin", "latent", "latent-hamiltonian", "both"]
# How the kernels of a flow's transformers are stored (`nn.stored_kernels`), with inputs in 8 bits for one of them.
Quantisation = Literal["int8", "int8-activations", "fp8", "int4"]
# Programs that `starflow plan` compiles.
ProgramName = Literal["train", "inverse"]


def choices(annotation: Any, field: str | None = None) -> tuple[Any, ...]:
    """The values that a `Literal` allows, preceded by None if the annotation is `Literal[...] | None`.

    Args:
      annotation: the `Literal`, or a dataclass.
      field: if `annotation` is a dataclass, the name of the field whose annotation is read.

    Raises:
      TypeError: the annotation is neither a `Literal` nor an optional `Literal`.
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
