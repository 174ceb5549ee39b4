"""What an encoding would read, build and write, without an example being encoded."""

from __future__ import annotations

import math
from typing import Any

import jax
import numpy as np

from starflow_jax.core.amounts import size_text
from starflow_jax.core.outline import Outline
from starflow_jax.data.sources.mixture import components_of, example_spec
from starflow_jax.training.latent_encoding import SHARD, Encoding
from starflow_jax.training.run_outline import described
from starflow_jax.training.step.inputs import latent_shape


def encode_outline(encoding: Encoding) -> Outline:
    """The outline of what `encode_data` would do with an opened encoding."""
    request, records = encoding.request, encoding.records
    word = np.dtype(request.dtype).itemsize
    left, total, files = encoding.total, 0, 0
    shapes: list[tuple[tuple[int, ...], int]] = []
    for component in components_of(encoding.source):
        number = min(len(component.source), left)
        left -= number
        shape = latent_shape(encoding.autoencoder, example_spec(component.source)["image"][0])
        # Rows of text states that are zero are not stored, so that this is the most they take.
        total += number * word * (math.prod(shape) + records.length * records.dim)
        files += -(-number // SHARD)
        shapes.append((shape, number))
    parameters = sum(np.size(leaf) for leaf in jax.tree.leaves(encoding.params))
    figures: dict[str, Any] = {
        "out": str(request.out),
        "source": encoding.source.name,
        "count": encoding.total,
        "shapes": [{"shape": shape, "count": number} for shape, number in shapes],
        "parameters_of_autoencoder": parameters,
        "most_bytes": total,
        "files": files,
    }
    read = [(f"{request.split} data: {name}", text) for name, text in described(encoding.source)]
    read.append(("examples to encode", f"{encoding.total:,}, each once"))
    built = [("autoencoder", f"{type(encoding.autoencoder).__name__}, {parameters:,} parameters")]
    if encoding.text is not None:
        built.append(("text states", f"{records.length} x {records.dim} a caption"))
    built.append(("batch", f"{request.batch_size} examples at a time"))
    written = [("folder", str(request.out))]
    for shape, number in shapes:
        written.append(("latents", f"{number:,} of {'x'.join(map(str, shape))}, {request.dtype}"))
    written.append(("ArrayRecord files", f"{files:,}, before compression at most {size_text(total)}"))
    return Outline(tuple(read), tuple(built), tuple(written), figures)
