"""A pipeline whose arguments have the names of those of diffusers."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from jaxtyping import Float, UInt8

from starflow_jax.core.choices import choices
from starflow_jax.core.config.checks import check, check_choice, check_integer, check_real
from starflow_jax.core.storage.addresses import is_address
from starflow_jax.core.storage.copies import local_path
from starflow_jax.core.storage.hub_addresses import HubAddress, is_hub_address
from starflow_jax.hub.model_opening import open_model
from starflow_jax.hub.pipeline_arguments import refuse, seed_of
from starflow_jax.sampling.image_requests import SampledImages
from starflow_jax.sampling.loaded_run import Run
from starflow_jax.sampling.sample_requests import SampleRequest, SolverRequest
from starflow_jax.sampling.sample_run import sample_run
from starflow_jax.sampling.video_requests import SampledVideos, draw_request, plan_request
from starflow_jax.sharding.layout import Layout
from starflow_jax.solvers import AnySolver

if TYPE_CHECKING:
    from PIL.Image import Image

OutputType = Literal["pil", "np"]


@dataclasses.dataclass(frozen=True, eq=False)
class StarFlowOutput:
    """What a pipeline has drawn.

    Attributes:
      images: of a model of images, a list of n PIL images, or float32 [n, H, W, C] in [0, 1]; None of videos.
      frames: of a model of videos, for each video a list of T PIL images, or float32 [n, T, H, W, C] in [0, 1]; None of
        images.
      samples: the same as `sf.sample` gives it, with the report of the solver.
    """

    images: list[Image] | np.ndarray | None
    frames: list[list[Image]] | np.ndarray | None
    samples: SampledImages | SampledVideos

    def to_tuple(self) -> tuple[Any, ...]:
        """The images or the frames, as the one entry of a tuple."""
        return (self.images if self.frames is None else self.frames,)


class StarFlowPipeline:
    """A trained model that is called like a pipeline of diffusers.

    Attributes:
      run: the model.
    """

    def __init__(self, run: Run):
        self.run = run

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: Path | str,
        *,
        revision: str | None = None,
        vae: Path | str | None = None,
        text_encoder: Path | str | None = None,
        ema: bool = True,
        step: int | None = None,
        layout: Layout | None = None,
    ) -> StarFlowPipeline:
        """Reads a trained model.

        Args:
          pretrained_model_name_or_path: a folder or an address, as `sf.from_pretrained` takes it: hf://ORG/NAME for a
            model on the Hugging Face Hub.
          revision: of a model on the Hub: a branch, a tag or a commit.
          vae: an autoencoder in place of that of the model: a folder of diffusers, a file of Wan2.2, or an address.
          text_encoder: a folder of transformers with its tokenizer in place of that of the model, or its address.
          ema, step, layout: as in `sf.from_pretrained`.

        Raises:
          ValueError: there is no such model, or a file of it is damaged or missing.
          StoreError: the store of an address, or the Hub, is not reached.
        """
        path = pretrained_model_name_or_path
        if is_hub_address(path) and revision is not None:
            address = HubAddress.parse(str(path))
            check(address.revision is None, f"give the revision once, got {address} and revision={revision!r}")
            path = str(HubAddress.parse(str(dataclasses.replace(address, revision=revision))))
        check(revision is None or is_hub_address(path), f"revision goes with hf://ORG/NAME, got {str(path)!r}")
        if not is_address(path) and not Path(path).exists() and str(path).count("/") == 1:
            raise ValueError(f"{path} is no folder; a model on the Hugging Face Hub is named hf://{path}")
        frozen: dict[str, Any] = {
            "decoder": None if vae is None else local_path(vae),
            "text_encoder": None if text_encoder is None else local_path(text_encoder),
        }
        return cls(open_model(path, ema=ema, step=step, layout=layout, **frozen))

    def __call__(
        self,
        prompt: str | Sequence[str] | None = None,
        *,
        class_label: int | str | None = None,
        image: Path | str | None = None,
        height: int | None = None,
        width: int | None = None,
        num_frames: int | None = None,
        num_images_per_prompt: int | None = None,
        num_videos_per_prompt: int | None = None,
        guidance_scale: float | None = None,
        generator: Any = None,
        seed: int | None = None,
        solver: AnySolver | SolverRequest | str | None = None,
        output_type: OutputType = "pil",
        return_dict: bool = True,
        warn: Callable[[str], None] = warnings.warn,
        **others: Any,
    ) -> StarFlowOutput | tuple[Any, ...]:
        """Draws images or videos.

        Args:
          prompt: one or more captions, for a model that reads captions.
          class_label: the index or the name of a class, for a model that reads classes; None for all in turn.
          image: of videos: a file with the first frame.
          height, width: in pixels, both or neither; of images those of the model, of videos also another aspect ratio
            of about the same area.
          num_frames: of videos: frames in all.
          num_images_per_prompt, num_videos_per_prompt: samples of every caption, or in all without captions (1).
          guidance_scale: 1 + w of the weight w of classifier-free guidance, as in diffusers: 1 for none, at least 1.
            None for that of the experiment.
          generator: the source of the seed, see `pipeline_arguments.seed_of`; seed: the seed itself (0).
          solver: inverts the flow; None for that of the experiment.
          output_type: "pil" for PIL images, "np" for float32 arrays in [0, 1].
          return_dict: False for a tuple, as in diffusers.
          warn: called with messages about captions that are left out.
          **others: arguments of other pipelines, which are refused with the reason unless they are None.

        Returns:
          The images or the frames.

        Raises:
          ValueError: an argument has no meaning for this model, or is out of range.
          TypeError: an argument that no pipeline has.
        """
        refuse(others, _KNOWN)
        check_choice("output_type", output_type, choices(OutputType))
        videos = bool(self.run.config.data.frames)
        per_prompt = {"num_images_per_prompt": num_images_per_prompt, "num_videos_per_prompt": num_videos_per_prompt}
        field = "num_videos_per_prompt" if videos else "num_images_per_prompt"
        num = per_prompt.pop(field)
        if num is not None:
            check_integer(field, num, minimum=1)
        for name, value in per_prompt.items():
            check(value is None, f"{name} is of the other kind: this is a model of {'videos' if videos else 'images'}")
        if guidance_scale is not None:
            check_real("guidance_scale", guidance_scale, minimum=1.0)
        if not videos:
            check(num_frames is None, "num_frames is of videos, and this is a model of images")
            check(image is None, "image is of videos, and this is a model of images")
        check((height is None) == (width is None), "height and width must be given together")
        request = SampleRequest(
            num=1 if num is None else num,
            captions=None if prompt is None else (prompt,) if isinstance(prompt, str) else tuple(prompt),
            label=class_label,
            image=None if image is None else Path(image),
            frames=num_frames,
            aspect=None if height is None or not videos else f"{width}:{height}",
            guidance=None if guidance_scale is None else guidance_scale - 1.0,
            solver=solver,
            seed=seed_of(generator, seed),
        )
        samples = self._videos(request, height, width, warn) if videos else self._images(request, height, width, warn)
        output = _output(samples, output_type)
        return output if return_dict else output.to_tuple()

    def _images(
        self, request: SampleRequest, height: int | None, width: int | None, warn: Callable[[str], None]
    ) -> SampledImages:
        check(not self.run.config.data.traits.vectors, "a pipeline draws images and videos, and this model vectors")
        rows, columns = self.run.config.flow.image_shape
        stride = 1 if self.run.autoencoder is None else self.run.autoencoder.stride
        _check_size(height, width, (rows * stride, columns * stride))
        samples = sample_run(self.run, request, warn=warn)
        assert isinstance(samples, SampledImages)
        return samples

    def _videos(
        self, request: SampleRequest, height: int | None, width: int | None, warn: Callable[[str], None]
    ) -> SampledVideos:
        planned = plan_request(self.run, request, warn=warn)
        _check_size(height, width, planned.size)
        return draw_request(self.run, planned)


_KNOWN = (
    "prompt", "class_label", "image", "height", "width", "num_frames", "num_images_per_prompt", "num_videos_per_prompt",
    "guidance_scale", "generator", "seed", "solver", "output_type", "return_dict",
)  # fmt: skip


def _check_size(height: int | None, width: int | None, size: tuple[int, int]) -> None:
    """Raises ValueError unless the size is that of the model, or not given."""
    check(
        height is None or (height, width) == size,
        f"height and width must be {size[0]} and {size[1]} for this model, got {height} and {width}",
    )


def _output(samples: SampledImages | SampledVideos, output_type: OutputType) -> StarFlowOutput:
    if isinstance(samples, SampledVideos):
        videos = samples.videos
        frames: Any = _unit(videos) if output_type == "np" else [[_picture(f) for f in video] for video in videos]
        return StarFlowOutput(None, frames, samples)
    pixels = samples.images
    images: Any = _unit(pixels) if output_type == "np" else [_picture(one) for one in pixels]
    return StarFlowOutput(images, None, samples)


def _unit(pixels: UInt8[np.ndarray, "*size"]) -> Float[np.ndarray, "*size"]:
    return pixels.astype(np.float32) / 255.0


def _picture(pixels: UInt8[np.ndarray, "H W C"]) -> Image:
    from PIL import Image

    return Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels)
