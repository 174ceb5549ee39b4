"""Builds the image generator of a request, and the plan that identifies what it generates."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

from starflow_jax.core.config.experiment_config import ExperimentConfig
from starflow_jax.core.request_errors import require
from starflow_jax.evaluation.samples.features.chunk_folder import ChunkFolder, stored_plan
from starflow_jax.evaluation.samples.features.feature_network import FeatureNetwork, weights_digest
from starflow_jax.evaluation.samples.features.network_fingerprint import fingerprint, fixed_images, matching_fingerprint
from starflow_jax.evaluation.samples.guidance_sweep import CaptionNetwork, Captions, ImageGenerator, pair_features
from starflow_jax.evaluation.samples.metrics.clip_score import pair_scores
from starflow_jax.evaluation.samples.sample_quality_request import SampleQualityRequest
from starflow_jax.flows.parameters import Params
from starflow_jax.models.autoencoders import kept_autoencoder
from starflow_jax.sampling import check_request
from starflow_jax.sampling.captions import read_image_captions
from starflow_jax.sampling.denoising import denoise_fields, recorded_denoising
from starflow_jax.sampling.latent_shapes import autoencoder_for
from starflow_jax.sampling.loaded_run import Run
from starflow_jax.sampling.options import SamplingOptions
from starflow_jax.sampling.solver_choice import choose_solver, solver_figures
from starflow_jax.training.checkpoints.digests import digest

# Captions whose text states identify the text encoder in a plan, which names all captions.
_COMPARED = 64

Warn = Callable[[str], None]


def open_generator(
    request: SampleQualityRequest, config: ExperimentConfig, params: Params, step: int, warn: Warn
) -> tuple[ImageGenerator, tuple[float, ...]]:
    """The generator of a request, and its guidance weights, all checked.

    Args:
      config, params, step: of the run; warn: called with a sentence for every caption that is left out.

    Raises:
      RequestError: a run on clips, missing captions, or options that do not go with the run.
      ValueError: see `autoencoder_for`, `load_text` and `sampling.check_request`.
    """
    config = generated_config(request, config)
    captions = _readable_captions(request, config, warn)
    batch = request.batch_size
    run = Run(request.workdir, config, params, step)
    solver = choose_solver(request.solver, run, batch=batch, warn=warn)
    generator = ImageGenerator(
        params,
        config,
        request.seed,
        batch,
        solver,
        request.temperature,
        request.attention_temperature or 1.0,
        denoise_fields(request),
        captions,
        autoencoder_for(config),
        request.parameters,
        run.learned_for(solver),
        request.annealed_guidance,
    )
    weights = request.guidance or (config.sample.guidance,)
    labels = generator.labels(0, 16)
    for weight in weights:
        check_request(
            config,
            labels,
            guidance=weight,
            annealed_guidance=request.annealed_guidance,
            temperature=config.sample.temperature if request.temperature is None else request.temperature,
            attention_temperature=generator.attention_temperature,
            **denoise_fields(request),
            batch_size=batch,
            solver=solver,
            learned=generator.learned,
            text=None if captions is None else captions.states(0, len(labels)),
            null=None if captions is None else captions.null,
        )
    return generator, weights


def generated_config(request: SampleQualityRequest, config: ExperimentConfig) -> ExperimentConfig:
    """The configuration of the run with the decoder and the text encoder of the request.

    Raises:
      RequestError: a run whose images cannot be generated or compared as requested.
      ValueError: a text encoder for a run that reads none.
    """
    require(not config.data.frames, "{workdir} must be a run on still images for {metrics}, got one on clips")
    require(
        not config.data.has_latents or request.real is not None,
        "{real} must name images to compare with, since precomputed latents have no pixels, got none",
    )
    if request.decoder is not None:
        require(config.data.on_latents, "{decoder} requires a run on latents, got one on pixels")
        config = dataclasses.replace(config, data=dataclasses.replace(config.data, decoder=str(request.decoder)))
    if request.text_encoder is None:
        return config
    return dataclasses.replace(config, data=dataclasses.replace(config.data, text_encoder=str(request.text_encoder)))


def _readable_captions(request: SampleQualityRequest, config: ExperimentConfig, warn: Warn) -> Captions | None:
    """The captions that the run can read; None for runs without captions."""
    if request.captions is None:
        require(
            not config.reads_captions,
            "{captions} must be given for a run on captions, got none; an empty caption samples without a condition",
        )
        return None
    read = read_image_captions(config, list(request.captions), labelled=False, workdir=request.workdir, warn=warn)
    return None if read is None else Captions(read.captions, read.states, read.states([""]))


def chunk_folder(
    request: SampleQualityRequest,
    generator: ImageGenerator,
    step: int,
    network: FeatureNetwork,
    pairs: CaptionNetwork | None,
    pairs_digest: str | None,
    shape: tuple[int, ...],
) -> ChunkFolder:
    """The folder of the request, with the plan of everything that determines its chunks.

    Weights that no name identifies count by fingerprint (caption encoder, network of captions) or hash (decoder).

    Args:
      step: of the checkpoint; pairs, pairs_digest: network of images and captions, and hash of its code, or None.
      shape: (H, W, C) of an image.

    Raises:
      ValueError: see `pair_features` and `pair_scores`.
    """
    config, captions = generator.config, generator.captions
    decoder = _decoder(config)
    stored = stored_plan(request.folder)
    plan: dict[str, Any] = {
        "step": step,
        "parameters": digest(generator.params),
        **({} if config.flow.quantise is None else {"quantise": config.flow.quantise}),
        **({} if generator.learned is None else {"learned_inverse": digest(generator.learned.params)}),
        "features": f"{network.name} {network.digest}",
        "features_of_fixed_pictures": network.fingerprint,
        "seed": generator.seed,
        **({"annealed_guidance": True} if _anneals(generator) else {}),
        "chunk": request.chunk,
        "solver": solver_figures(generator.solver),
        "temperature": config.sample.temperature if generator.temperature is None else generator.temperature,
        "attention_temperature": generator.attention_temperature,
        **recorded_denoising(config, generator.denoise or denoise_fields(SamplingOptions())),
        "captions": None if captions is None else list(captions.texts),
        "decoder": decoder,
        "clip": pairs_digest,
        "text_states": None,
        "clip_of_fixed_pictures": None,
    }
    if captions is not None:
        states = fingerprint(captions.states(0, min(_COMPARED, len(captions.texts))), captions.null)
        plan["text_states"] = matching_fingerprint(states, stored.get("text_states"))
    if pairs is not None:
        images = fixed_images(shape)
        features = pair_features(pairs, images, generator.texts(0, len(images)))
        pair_scores(*features)  # raises for features that are not pairs
        plan["clip_of_fixed_pictures"] = matching_fingerprint(
            fingerprint(*features), stored.get("clip_of_fixed_pictures")
        )
    plan["decoder_weights"] = None if generator.autoencoder is None else weights_digest(generator.autoencoder.params)
    return ChunkFolder(request.folder, plan, request.chunk)


def _anneals(generator: ImageGenerator) -> bool:
    default = generator.config.sample.annealed_guidance
    return default if generator.annealed_guidance is None else generator.annealed_guidance


def _decoder(config: ExperimentConfig) -> str | None:
    """The file or folder of the decoder; None for a run on pixels."""
    data = config.data
    decoder = data.decoder or data.autoencoder
    if decoder is None and data.on_latents and data.path is not None:
        path = kept_autoencoder(Path(data.path))
        decoder = None if path is None else str(path)
    return decoder
