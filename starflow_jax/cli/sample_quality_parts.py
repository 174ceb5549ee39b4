"""What `starflow evaluate --metrics` puts together, each part checked before anything is drawn."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from starflow_jax.cli.errors import CommandError, sentences
from starflow_jax.cli.options.captions import read_captions, with_text_encoder
from starflow_jax.cli.options.sample_quality import BATCH, CHUNK
from starflow_jax.cli.options.scored_data import check_on_pixels
from starflow_jax.cli.options.solver import solver_request
from starflow_jax.cli.remarks import remark, skipped_lines

if TYPE_CHECKING:
    from starflow_jax.core.config.experiment import ExperimentConfig
    from starflow_jax.data import Source
    from starflow_jax.evaluation.samples.feature_network import FeatureNetwork


def checked_drawing(arguments: argparse.Namespace, config: ExperimentConfig, params: Any, step: int) -> Any:
    """(configuration with decoder and text encoder, how pictures are drawn, weights of guidance), all checked."""
    from starflow_jax.evaluation.samples.guidance_sweep import Captions, Drawing
    from starflow_jax.sampling import check_request
    from starflow_jax.sampling.captions import image_captions
    from starflow_jax.sampling.loaded_run import Run
    from starflow_jax.sampling.solver_choice import choose_solver
    from starflow_jax.solvers import named_solver
    from starflow_jax.training.run_calibration import read_calibration
    from starflow_jax.training.step.frozen_autoencoder import decoded_by, load_encoder
    from starflow_jax.training.step.frozen_text import load_text

    if config.data.frames:
        raise CommandError("--workdir must be a run on still images for --metrics, got one on clips")
    computed = any(part.source == "latents" for part in (config.data, *config.data.mixture))
    if computed and arguments.real is None:
        raise CommandError(
            "--real must name pictures to compare with: of latents that were computed before there are none, got none"
        )
    if arguments.decoder is not None and not config.data.on_latents:
        raise CommandError("--decoder goes with a run on latents, got one on pixels")
    with sentences(decoded_by, load_encoder):
        if arguments.decoder is not None:
            config = decoded_by(config, arguments.decoder)
        else:
            load_encoder(config)
    config = with_text_encoder(config, arguments.text_encoder)
    if arguments.captions is None and (config.text is not None or config.data.text_encoder is not None):
        raise CommandError("--caption must say what a run on captions draws, got none; an empty one says nothing")
    run = Run(arguments.workdir, config, params, step)
    texts = None if arguments.captions is None else read_captions(arguments.captions)
    with sentences(load_text):
        said = image_captions(config, texts, labelled=False, workdir=arguments.workdir, warn=remark)
    batch = arguments.sample_batch or min(BATCH, arguments.num_samples or BATCH)
    with sentences(read_calibration, named_solver):
        solver = choose_solver(solver_request(arguments), run, batch=batch, warn=remark)
    drawing = Drawing(
        params,
        config,
        arguments.seed,
        batch,
        solver,
        arguments.temperature,
        arguments.attention_temperature or 1.0,
        arguments.denoise,
        None if said is None else Captions(said.captions, said.text, said.null),
    )
    weights = arguments.guidance or (config.sample.guidance,)
    labels = drawing.labels(0, 16)
    with sentences(check_request):
        for weight in weights:
            check_request(
                config,
                labels,
                guidance=weight,
                temperature=config.sample.temperature if drawing.temperature is None else drawing.temperature,
                attention_temperature=drawing.attention_temperature,
                denoise=drawing.denoise or config.sample.denoise,
                batch_size=batch,
                text=None if said is None else said.text[[row % len(said.captions) for row in range(16)]],
                null=None if said is None else said.null,
            )
    return config, drawing, weights


def references(arguments: argparse.Namespace, config: ExperimentConfig) -> tuple[Source, Source | None]:
    """The real pictures to compare with, and others of their kind, which show what to expect of real ones."""
    if arguments.real is not None:
        return real_pictures(arguments.real, config), None
    reference, other = (pictures(config, split, needed) for split, needed in splits(arguments))
    assert reference is not None
    return reference, other


def real_pictures(path: Path, config: ExperimentConfig) -> Source:
    """The readable pictures of `--real`, of the size that the run draws."""
    from starflow_jax.data.decoding.bad_examples import Skipped
    from starflow_jax.data.pipeline.readable_subset import readable
    from starflow_jax.data.sources.reference_images import open_real
    from starflow_jax.sampling.latent_shapes import autoencoder_of

    skipped = Skipped()
    with sentences(autoencoder_of, open_real, readable):
        decoder, (height, width) = autoencoder_of(config.data), config.flow.image_shape
        size, channels = (height, width), config.flow.channels
        if decoder is not None:
            size, channels = (height * decoder.stride, width * decoder.stride), decoder.pixel_channels
        source = readable(open_real(path, size, channels), skipped)
    skipped_lines(skipped)
    return source


def splits(arguments: argparse.Namespace) -> list[tuple[str, bool]]:
    """The split to compare with, and the other one, which need not be there."""
    reference = arguments.reference or "train"
    return [(reference, True), ("test" if reference == "train" else "train", False)]


def pictures(config: ExperimentConfig, split: Any, needed: bool) -> Source | None:
    """The readable pictures of a split, in pixels; None where the split is not needed and cannot be opened."""
    from starflow_jax.data.decoding.bad_examples import Skipped
    from starflow_jax.data.pipeline.readable_subset import readable
    from starflow_jax.data.sources.mixture import components_of, example_spec
    from starflow_jax.training.step.frozen_autoencoder import open_with_encoder

    skipped = Skipped()
    try:
        with sentences(open_with_encoder, readable):
            source, _ = open_with_encoder(config, split)
            shapes = {example_spec(component.source)["image"][0] for component in components_of(source)}
            if not source.levels or len(shapes) > 1:
                raise CommandError(f"--workdir must be a run on pictures of one shape, got {len(shapes)} shapes")
            source = readable(source, skipped)
    except CommandError:
        if needed:
            raise
        return None
    skipped_lines(skipped)
    return source


def check_bits(arguments: argparse.Namespace, config: ExperimentConfig) -> None:
    if "bpd" in arguments.metrics:
        check_on_pixels(config)
        if config.data.text_encoder is not None:
            raise CommandError("--metrics bpd must be of a run without captions; starflow score scores those")


def feature_network(
    arguments: argparse.Namespace, config: ExperimentConfig, out: Path, layout: Any, reference: Source
) -> FeatureNetwork:
    from starflow_jax.data.sources.mixture import example_spec
    from starflow_jax.evaluation.samples.chunk_folder import DIGIT_FILE, check_free
    from starflow_jax.evaluation.samples.digit_classifier import digit_network
    from starflow_jax.evaluation.samples.feature_network import inception_network, named_network
    from starflow_jax.training.distributed.agreement import on_first_process

    named = arguments.features
    if named is None and config.data.source == "digits":
        named = "digits"
    if named is None:
        raise CommandError("--features must name the network that looks at pictures, got none; see --help")
    if arguments.resize is not None and (named == "digits" or ":" in named):
        raise CommandError(f"--resize goes with weights of Inception, got --features {named}")
    height, width, channels = example_spec(reference)["image"][0]
    with sentences(check_free, digit_network, inception_network, named_network):
        check_free(out)
        if named == "digits":
            if channels != 1 or height % 8 or width % 8:
                raise CommandError(
                    "--features digits reads grey pictures of multiples of 8 pixels, "
                    f"got pictures of {height} x {width} x {channels}"
                )
            path = out / DIGIT_FILE
            on_first_process(lambda: (digit_network(path), None)[1], str(path))
            return digit_network(path)
        if ":" in named and not Path(named).exists():
            _with_working_folder()
            return named_network(named)
        return inception_network(Path(named), resize=arguments.resize or "half-pixel", layout=layout)


def pair_network(arguments: argparse.Namespace) -> tuple[Any, str | None]:
    from starflow_jax.evaluation.samples.feature_network import named_function

    if arguments.clip is None:
        return None, None
    _with_working_folder()
    with sentences(named_function):
        return named_function(arguments.clip)


def _with_working_folder() -> None:
    """Lets modules beside the person be imported, as `python -m` does."""
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())


def probe(arguments: argparse.Namespace, network: FeatureNetwork, reference: Source) -> tuple[int, ...]:
    """Tries the network on two real pictures before thousands are drawn; returns the shape of a picture."""
    import numpy as np

    from starflow_jax.evaluation.samples.feature_network import look_at

    image = reference[0]["image"]
    if network.channels is not None and image.shape[2] not in network.channels:
        raise CommandError(f"--features {network.name} reads 1 or 3 channels, got pictures of {image.shape[2]}")
    with sentences(look_at):
        seen = look_at(network, np.zeros((2, *image.shape), np.uint8), 2)
    if "is" in arguments.metrics and seen.logits is None:
        raise CommandError(f"--metrics is needs logits, and {network.name} gives features alone")
    return tuple(image.shape)


def _decoder(config: ExperimentConfig) -> str | None:
    """The file or folder that pictures are decoded by; None for a run on pixels."""
    from starflow_jax.models.autoencoders import kept_autoencoder

    data = config.data
    named = data.decoder or data.autoencoder
    if named is None and data.on_latents and data.path is not None:
        kept = kept_autoencoder(Path(data.path))
        named = None if kept is None else str(kept)
    return named


def chunk_folder(
    arguments: argparse.Namespace,
    config: ExperimentConfig,
    params: Any,
    step: int,
    drawing: Any,
    network: FeatureNetwork,
    pairs_digest: str | None,
    out: Path,
) -> Any:
    from starflow_jax.evaluation.samples.chunk_folder import ChunkFolder
    from starflow_jax.sampling.solver_choice import solver_figures
    from starflow_jax.training.checkpoints.digests import digest

    said = drawing.captions
    plan = {
        "step": step,
        "parameters": digest(params),
        "features": f"{network.name} {network.digest}",
        "features_of_fixed_pictures": network.answers,
        "seed": drawing.seed,
        "chunk": arguments.chunk or CHUNK,
        "solver": solver_figures(drawing.solver),
        "temperature": config.sample.temperature if drawing.temperature is None else drawing.temperature,
        "attention_temperature": drawing.attention_temperature,
        "denoise": drawing.denoise or config.sample.denoise,
        "captions": None if said is None else list(said.texts),
        "decoder": _decoder(config),
        "clip": pairs_digest,
    }
    return ChunkFolder(out, plan, arguments.chunk or CHUNK)
