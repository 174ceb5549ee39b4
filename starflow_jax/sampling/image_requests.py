"""Plans and runs requests for images, and selects the likeliest candidates."""

from __future__ import annotations

import dataclasses
import difflib
import numbers
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int, UInt8

from starflow_jax.core.config.experiment_config import ExperimentConfig
from starflow_jax.core.request_errors import RequestError
from starflow_jax.data.pipeline.opening_notes import printable_name
from starflow_jax.sampling import image_sampling
from starflow_jax.sampling.captions import ImageCaptions, image_captions
from starflow_jax.sampling.denoising import denoise_fields
from starflow_jax.sampling.image_sampling import Samples, class_labels
from starflow_jax.sampling.loaded_run import Run
from starflow_jax.sampling.ranking import likeliest, log_likelihoods
from starflow_jax.sampling.sample_requests import SampleRequest
from starflow_jax.sampling.sampling_report import SampleReport
from starflow_jax.sampling.solver_choice import choose_solver
from starflow_jax.solvers import AnySolver
from starflow_jax.training.step.inputs import condition

BATCH_SIZE = 64


@dataclasses.dataclass(frozen=True, eq=False)
class ImagePlan:
    """A request for images with everything resolved that it leaves open.

    Attributes:
      request: the request.
      label: a class index, "all" or "none".
      labels: int32 [n], the class of every image, -1 for none.
      captions: the captions, None for images of classes; rows: int [n], the caption of every image.
      each: images of every caption.
      guidance: the weight of guidance.
      solver: the solver that inverts blocks.
      batch_size: images sampled together.
    """

    request: SampleRequest
    label: int | str
    labels: np.ndarray
    captions: ImageCaptions | None
    rows: np.ndarray
    each: int
    guidance: float
    solver: AnySolver
    batch_size: int


@dataclasses.dataclass(frozen=True, eq=False)
class SampledImages:
    """The result of a request for images.

    Attributes:
      samples: all sampled images.
      kept: int [m], indices of the images to keep: all of them, or the likeliest candidates.
      scores: float32 [m], log-likelihoods of the kept images in nats; None where there are no candidates.
      cond: labels int32 [n] or text states float32 [n, L, text_dim] of all images; None for a flow that reads neither.
    """

    samples: Samples
    kept: np.ndarray
    scores: np.ndarray | None
    cond: np.ndarray | None

    @property
    def images(self) -> UInt8[np.ndarray, "kept H W C"]:
        """The kept images, uint8 [m, H, W, C]."""
        return self.samples.images[self.kept]

    @property
    def x(self) -> Float[np.ndarray, "kept H W C"]:
        """The kept images in the units of the flow, float32 [m, H, W, C]."""
        return self.samples.x[self.kept]

    @property
    def labels(self) -> Int[np.ndarray, "kept"]:
        """The classes of the kept images, int32 [m], -1 for none."""
        return self.samples.labels[self.kept]

    @property
    def report(self) -> SampleReport:
        """Solver iterations, convergence and time."""
        return self.samples.report


def plan_images(run: Run, request: SampleRequest, *, warn: Callable[[str], None]) -> ImagePlan:
    """Resolves a request for images.

    Args:
      run: the trained model.
      request: the request.
      warn: called with messages about captions that are left out and about an old calibration.

    Raises:
      RequestError, ValueError: the request does not fit the model.
    """
    request.check_kind(run.workdir, videos=False)
    config = run.config
    captions = image_captions(
        config, request.captions, labelled=request.label is not None, workdir=run.workdir, warn=warn
    )
    label = ("none" if captions else "all") if request.label is None else class_index(config, request.label)
    names = config.data.class_names or ()
    if isinstance(request.label, numbers.Integral) and str(label) in names and names.index(str(label)) != label:
        warn(f"class {label} is the class of this index, not the one called {label}, whose index is another")
    num_samples = request.candidates or request.num or config.sample.num
    if captions is not None:
        rows = np.repeat(np.arange(len(captions.captions)), num_samples)
        labels = np.full(len(rows), -1, np.int32)
        conditional = any(caption.strip() for caption in captions.captions)
    else:
        labels = _labels(run, request, label, num_samples)
        rows = np.zeros(len(labels), np.int64)
        conditional = bool((labels >= 0).any())
    guidance = request.guidance
    if guidance is None:  # the weight of the configuration is meant for images with a condition
        guidance = config.sample.guidance if conditional else 0.0
    batch_size = request.batch_size or BATCH_SIZE
    solver = choose_solver(request.solver, run, batch=min(batch_size, len(labels)), warn=warn)
    return ImagePlan(request, label, labels, captions, rows, num_samples, guidance, solver, batch_size)


def class_index(config: ExperimentConfig, label: int | str) -> int | str:
    """The index of a class that is given by its name; indices, "all" and "none" are returned unchanged.

    Raises:
      RequestError: the run has recorded no class of that name.
    """
    if not isinstance(label, str) or label in ("all", "none"):
        return label
    names = config.data.class_names or ()
    if label in names:
        return names.index(label)
    near = difflib.get_close_matches(label, names, n=3) or names[:8]
    known = (
        f"names of its classes are {', '.join(map(printable_name, near))}"
        if names
        else "it has recorded no names of classes"
    )
    raise RequestError(
        '{label} must be the index or the name of a class of the run, "all" or "none", got {0!r}; {1}', label, known
    )


def _labels(run: Run, request: SampleRequest, label: int | str, num_samples: int) -> np.ndarray:
    """The class of every image of a request without captions, int32 [n]."""
    classes = run.config.flow.num_classes or run.config.flow.text_dim
    if request.candidates is not None:
        indices = (
            np.arange(max(classes, 1)) if label == "all" and classes else [-1 if isinstance(label, str) else label]
        )
        return np.repeat(np.asarray(indices, np.int32), request.candidates)
    if label == "all":
        return class_labels(run.config, num_samples)
    return np.full(num_samples, -1 if isinstance(label, str) else label, np.int32)


def draw_images(run: Run, plan: ImagePlan) -> SampledImages:
    """Samples the images of a plan, and selects the likeliest candidates where it requests them.

    Raises:
      ValueError: see `image_sampling.check_request`.
    """
    request, captions, config = plan.request, plan.captions, run.config
    text = None if captions is None else captions.text[plan.rows]
    samples = image_sampling.sample(
        run.params,
        config,
        jax.random.key(request.seed),
        plan.labels,
        text=text,
        null=None if captions is None else captions.null,
        autoencoder=run.autoencoder,
        solver=plan.solver,
        guidance=plan.guidance,
        annealed_guidance=request.annealed_guidance,
        temperature=request.temperature,
        attention_temperature=request.attention_temperature,
        **denoise_fields(request),
        parameters=request.parameters,
        learned=run.learned_for(plan.solver),
        batch_size=plan.batch_size,
    )
    cond = condition(jnp.asarray(plan.labels), config.flow) if text is None else text
    cond_array = None if cond is None else np.asarray(cond)
    if request.candidates is None:
        return SampledImages(samples, np.arange(len(plan.labels)), None, cond_array)
    scores = log_likelihoods(run.params, config.flow, samples.noisy, cond_array, batch_size=plan.batch_size)
    kept = likeliest(scores, request.candidates, request.keep or 1)
    return SampledImages(samples, kept, scores[kept], cond_array)
