"""How good the pictures of a flow are, by weight of guidance: drawn, looked at, and compared with real ones."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from starflow_jax.core.config.experiment import ExperimentConfig
from starflow_jax.data import Source
from starflow_jax.data.pipeline.content_digest import contents_digest
from starflow_jax.evaluation.samples.chunk_folder import Chunk, ChunkFolder
from starflow_jax.evaluation.samples.clip_score import clip_score, pair_scores
from starflow_jax.evaluation.samples.feature_network import FeatureNetwork, Seen, look_at
from starflow_jax.evaluation.samples.feature_statistics import (
    MOST_KEPT,
    ImageStatistics,
    image_statistics,
    quality,
    read_statistics,
    write_statistics,
)
from starflow_jax.evaluation.samples.inception_score import SPLITS
from starflow_jax.flows.parameters import Params
from starflow_jax.sampling import Samples, class_labels, sample
from starflow_jax.solvers import AnySolver
from starflow_jax.training.checkpoints.digests import json_digest
from starflow_jax.training.distributed.agreement import barrier, gather_texts

# Keeps the noise of these pictures apart from what else is drawn from the same seed.
_STREAM = 0xF1D


@dataclasses.dataclass(frozen=True, eq=False)
class Captions:
    """What pictures are drawn from, in turn.

    Attributes:
      texts: n captions; states: float32 [n, L, D]; null: float32 [1, L, D], of the empty caption.
    """

    texts: tuple[str, ...]
    states: np.ndarray
    null: np.ndarray


# (pictures uint8 [B, H, W, C], their captions) to features of both, [B, d] each.
PairNetwork = Callable[[np.ndarray, Sequence[str]], tuple[Any, Any]]


@dataclasses.dataclass(frozen=True, eq=False)
class Drawing:
    """How the pictures of a sweep are drawn.

    Attributes:
      params, config: of the flow; seed: of the noise; batch_size: pictures drawn together; the others as `sample`
        takes them; captions: None where classes, in turn, or nothing decides what is drawn.
    """

    params: Params
    config: ExperimentConfig
    seed: int
    batch_size: int
    solver: AnySolver
    temperature: float | None = None
    attention_temperature: float = 1.0
    denoise: Any = None
    captions: Captions | None = None

    def labels(self, first: int, count: int) -> np.ndarray:
        """Of pictures first .. first + count - 1 of a sweep, int32."""
        return class_labels(self.config, first + count)[first:] if self.captions is None else np.full(count, -1)

    def texts(self, first: int, count: int) -> list[str]:
        """Their captions; none where classes decide."""
        if self.captions is None:
            return []
        return [self.captions.texts[place % len(self.captions.texts)] for place in range(first, first + count)]

    def draw(self, guidance: float, number: int, first: int, count: int) -> Samples:
        """Pictures first .. first + count - 1, the chunk `number`."""
        stream = jax.random.fold_in(jax.random.key(self.seed), _STREAM)
        said = self.captions
        rows = np.arange(first, first + count)
        return sample(
            self.params,
            self.config,
            jax.random.fold_in(stream, number),
            self.labels(first, count),
            text=None if said is None else said.states[rows % len(said.texts)],
            null=None if said is None else said.null,
            solver=self.solver,
            guidance=guidance,
            temperature=self.temperature,
            attention_temperature=self.attention_temperature,
            denoise=self.denoise,
            batch_size=self.batch_size,
        )


def draw_missing(
    folder: ChunkFolder,
    drawing: Drawing,
    network: FeatureNetwork,
    guidance: float,
    total: int,
    *,
    pairs: PairNetwork | None = None,
    drawn: Callable[[int, Samples], None] = lambda number, samples: None,
) -> int:
    """Draws the chunks of `total` pictures that the folder does not hold whole, and keeps their features.

    All processes draw together; the first says what is missing, and writes.

    Args:
      pairs: also keeps CLIP scores by this network; drawn: called with each new chunk, on every process.

    Returns:
      How many pictures were drawn.

    Raises:
      ValueError: see `sampling.check_request` and `look_at`.
    """
    wanted = folder.wanted(total)
    missing: list[int] = []
    if jax.process_index() == 0:
        missing = [k for k, n in wanted if folder.read(guidance, k, n, clip=pairs is not None) is None]
    missing = json.loads(gather_texts(json.dumps(missing))[0])
    for number in missing:
        first, count = number * folder.size, wanted[number][1]
        samples = drawing.draw(guidance, number, first, count)
        seen = look_at(network, samples.images, min(drawing.batch_size, count))
        clip = None if pairs is None else _clip_scores(pairs, samples.images, drawing.texts(first, count))
        if jax.process_index() == 0:
            report = samples.report
            folder.write(guidance, number, Chunk(seen, clip, report.non_finite, len(report.unconverged)))
        drawn(number, samples)
    barrier(f"samples of guidance {guidance!r}")
    return sum(wanted[number][1] for number in missing)


def sample_figures(
    folder: ChunkFolder, guidance: float, total: int, real: ImageStatistics | None, metrics: Sequence[str]
) -> dict[str, Any]:
    """The figures of the pictures that the folder holds, of one guidance; real: None where no metric compares.

    Raises:
      ValueError: a chunk that is missing, or a metric that the network does not allow.
    """
    scores: list[np.ndarray] = []
    counts = np.zeros(2, int)

    def parts() -> Iterator[Seen]:
        for chunk in folder.chunks(guidance, total, clip="clip" in metrics):
            counts[:] += (chunk.non_finite, chunk.unconverged)
            if chunk.clip is not None:
                scores.append(chunk.clip)
            yield chunk.seen

    found = image_statistics(parts(), total)
    figures: dict[str, Any] = {"guidance": guidance, "samples": total}
    figures |= {"non_finite": int(counts[0]), "unconverged": int(counts[1])}
    if real is not None:
        figures |= quality(found, real, [name for name in metrics if name != "clip"])
    if "clip" in metrics:
        score = clip_score(np.concatenate(scores))
        figures |= {"clip": score.mean, "clip_error": score.error}
    return figures


def real_statistics(
    folder: Path, source: Source, network: FeatureNetwork, batch_size: int, shape: tuple[int, ...]
) -> ImageStatistics | None:
    """Statistics of all pictures of a source, kept in the folder under what the source holds; all processes ask.

    Pictures are shown to the network as samples are: uint8 0 to 255, levels stretched over them. What the source holds
    is known by `contents_digest`, the network by its digest and answers.

    Args:
      shape: (H, W, C) that every picture must have.

    Returns:
      None on processes other than the first, which need none.

    Raises:
      ValueError: pictures of another shape, or what `look_at` refuses.
    """
    looked = [network.name, network.digest, network.answers]
    identity = json.dumps([contents_digest(source), shape, *looked, MOST_KEPT, SPLITS])
    path = folder / f"real-{json_digest(identity)}.npz"
    first = jax.process_index() == 0
    found = read_statistics(path, identity) if first else None
    if json.loads(gather_texts(json.dumps(found is None))[0]):
        found = image_statistics(_looked(network, source, batch_size, shape), len(source))
        if first:
            write_statistics(path, found, identity)
    return found if first else None


def _looked(network: FeatureNetwork, source: Source, batch_size: int, shape: tuple[int, ...]) -> Iterable[Seen]:
    for first in range(0, len(source), batch_size):
        places = range(first, min(first + batch_size, len(source)))
        images = [source[place]["image"] for place in places]
        wrong = next((image.shape for image in images if image.shape != shape), None)
        if wrong is not None:
            raise ValueError(f"{source.name} must hold pictures of {list(shape)} to compare with, got {list(wrong)}")
        stretched = np.rint(np.stack(images) * (255.0 / (source.levels - 1))).astype(np.uint8)
        yield look_at(network, stretched, batch_size)


def pair_features(pairs: PairNetwork, images: np.ndarray, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Features of pictures uint8 [B, H, W, C] and of their captions.

    Raises:
      ValueError: an answer that is no pair.
    """
    answer = pairs(images, texts)
    if not isinstance(answer, tuple) or len(answer) != 2:
        raise ValueError("the CLIP function must give (features of pictures, features of captions)")
    return np.asarray(answer[0]), np.asarray(answer[1])


def _clip_scores(pairs: PairNetwork, images: np.ndarray, texts: Sequence[str]) -> np.ndarray:
    return pair_scores(*pair_features(pairs, images, texts))
