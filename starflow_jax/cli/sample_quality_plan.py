"""What the samples of `starflow evaluate --metrics` depend on and no name tells: weights read from files."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

from starflow_jax.cli.errors import sentences

if TYPE_CHECKING:
    from starflow_jax.evaluation.samples.chunk_folder import ChunkFolder
    from starflow_jax.evaluation.samples.feature_network import FeatureNetwork


def with_answers(network: FeatureNetwork, shape: tuple[int, ...], out: Path) -> FeatureNetwork:
    """The network with its answers to fixed pictures; those kept in the folder `out`, but for rounding the same."""
    from starflow_jax.evaluation.samples.chunk_folder import kept_plan
    from starflow_jax.evaluation.samples.feature_network import answers_of
    from starflow_jax.evaluation.samples.network_fingerprint import agreed

    with sentences(answers_of):
        answers = answers_of(network, shape)
    return dataclasses.replace(network, answers=agreed(answers, kept_plan(out).get("features_of_fixed_pictures")))


def with_marks(folder: ChunkFolder, drawing: Any, pairs: Any, shape: tuple[int, ...]) -> ChunkFolder:
    """The folder, whose plan also tells the states of captions, the decoder's weights, and the network of --clip."""
    from starflow_jax.evaluation.samples.chunk_folder import kept_plan
    from starflow_jax.evaluation.samples.clip_score import pair_scores
    from starflow_jax.evaluation.samples.feature_network import digest_of_weights
    from starflow_jax.evaluation.samples.guidance_sweep import pair_features
    from starflow_jax.evaluation.samples.network_fingerprint import agreed, fixed_pictures, marks
    from starflow_jax.models.autoencoders import load_autoencoder

    found: dict[str, Any] = {"text_states": None, "clip_of_fixed_pictures": None, "decoder_weights": None}
    said = drawing.captions
    if said is not None:
        found["text_states"] = marks(said.states, said.null)
    if pairs is not None:
        images = fixed_pictures(shape)
        with sentences(pair_features, pair_scores):
            features = pair_features(pairs, images, drawing.texts(0, len(images)))
            pair_scores(*features)  # refuses what is no pair of features
        found["clip_of_fixed_pictures"] = marks(*features)
    kept = kept_plan(folder.path)
    found = {name: own if own is None else agreed(own, kept.get(name)) for name, own in found.items()}
    decoder = folder.plan["decoder"]
    if decoder is not None:
        with sentences(load_autoencoder):
            found["decoder_weights"] = digest_of_weights(load_autoencoder(Path(decoder))[1])
    return dataclasses.replace(folder, plan={**folder.plan, **found})
