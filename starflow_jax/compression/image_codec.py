"""Compresses images and clips by a trained flow, and decompresses them: what both directions must do alike."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import zlib
from collections.abc import Iterator, Sequence

import numpy as np

from starflow_jax.compression.condition import Conditions, caption_conditions, class_conditions
from starflow_jax.compression.environment import Environment, fingerprint, probe
from starflow_jax.compression.file_format import (
    CONDITIONS,
    MOST_IMAGES,
    MOST_PIXEL_BITS,
    MOST_ROWS,
    MOST_VALUES,
    Header,
    group_sizes,
    read_file,
    write_file,
)
from starflow_jax.compression.flow_coder import GroupCoders, Resolution
from starflow_jax.compression.rans import AnsStack
from starflow_jax.core.config.checks import check, check_integer
from starflow_jax.core.regular_files import MAX_TEXT_BYTES, parse_json
from starflow_jax.flows.order import is_frame_causal
from starflow_jax.sampling.loaded_run import Run
from starflow_jax.sharding.layout import tree_layout
from starflow_jax.training.step.inputs import open_source

DEFAULT_ROWS = 64


def compress(
    model: Run,
    images: np.ndarray,
    cond: str | Sequence[int] | Sequence[str] | np.ndarray | None = "auto",
    *,
    names: Sequence[str] = (),
    batch_size: int = DEFAULT_ROWS,
    resolution: Resolution | None = None,
) -> bytes:
    """A lossless file of images or clips, by the model's likelihood; it is decoded before it is returned.

    Args:
      model: a trained model on pixels, on one device.
      images: integers [n, H, W, C], or clips [n, T, H, W, C] for a model of videos, 0 to levels - 1, of the size that
        the model was trained on.
      cond: of a model with classes: labels int [n]; "auto" takes the likeliest class of every image, which
        the file stores at log2(classes) bits; None for none. Of a model with captions: one for each clip or one for
        all; "auto" and None for the empty caption. Other models take "auto" or None.
      names: of the images, which the file stores; empty for none.
      batch_size: images computed together; a part of the file, since it changes the arithmetic.
      resolution: of the integer grids; None for the default.

    Returns:
      The bytes of a file (`file_format`), which `decompress` reads with the same model, on a machine with the same
      versions, kind of device and arithmetic.

    Raises:
      ValueError: an argument that does not fit the model, a model that cannot be used, or programs that do not repeat
        their results on this machine.
    """
    levels = check_model(model)
    images = _checked_images(model, images, levels)
    check_integer("batch_size", batch_size, minimum=1, maximum=MOST_ROWS)
    check(
        not names or len(names) == len(images), f"names must be one for each of {len(images)} images, got {len(names)}"
    )
    resolution = resolution or default_resolution(levels)
    check_integer("resolution.pixel_bits", resolution.pixel_bits, minimum=0, maximum=MOST_PIXEL_BITS)
    check_integer("resolution.token_bits", resolution.token_bits, minimum=0, maximum=24)
    conditions = _conditions(model, images, cond, levels)
    frames = images.shape[1] if images.ndim == 5 else None
    rows = max(group_sizes(len(images), batch_size))
    coders = GroupCoders(model.config.flow, model.params, levels, frames, rows, resolution)
    bottom = _name_words(names)
    sizes = group_sizes(len(images), rows)
    header = Header(
        levels=levels,
        count=len(images),
        frames=frames or 0,
        height=images.shape[-3],
        width=images.shape[-2],
        channels=images.shape[-1],
        rows=rows,
        pixel_bits=resolution.pixel_bits,
        token_bits=resolution.token_bits,
        condition=CONDITIONS.index(conditions.kind),
        bottom_words=len(bottom),
        captions=conditions.captions,
        environment=dataclasses.astuple(Environment.here()),
        fingerprint=fingerprint(model.config.flow, model.params),
        probe=probe(coders.last(), conditions.rows(slice(0, 1))),
        pixels=_crc(part for _, _, part in _parts(images, sizes)),
    )
    stack, end = AnsStack(bottom), len(images)
    for index, size in enumerate(sizes):
        group = slice(end - size, end)
        rows_of_group = conditions.rows(group)
        coders.of_group(index).push_group(stack, images[group], rows_of_group)
        conditions.push(stack, rows_of_group)
        end -= size
    data = write_file(header, stack.to_bytes())
    check(
        bool(np.array_equal(Decoder(model, data).all(), images)),
        "the compressed images must decode to themselves, but the programs of this machine do not repeat their results",
    )
    return data


def decompress(model: Run, data: bytes) -> np.ndarray:
    """The images of a file of `compress`, uint8 [n, H, W, C] or [n, T, H, W, C].

    Args:
      model: that which compressed them, on one device.
      data: the bytes of the file.

    Raises:
      ValueError: the file is damaged, or was made by another model, another version, on another kind of device, or on a
        machine whose arithmetic differs.
    """
    return Decoder(model, data).all()


class Decoder:
    """Decodes a file part by part.

    Args:
      model: that which compressed it.
      data: the bytes of the file.

    Attributes:
      header: of the file.
      names: of the images, known after the last part; empty where the file has none.
      labels: the class of every image, int32 [n], known after the last part; None where the file has none.

    Raises:
      ValueError: see `decompress`. Everything is checked before the first image is decoded, except that the images have
        the checksum that the file states, which `parts` checks at its end.
    """

    def __init__(self, model: Run, data: bytes):
        self.header, stream = read_file(data)
        header, flow = self.header, model.config.flow
        levels = check_model(model)
        # Versions first: another version may have another fingerprint of the same model.
        difference = Environment(*header.environment).difference(Environment.here())
        check(difference is None, f"it was made by {difference}, whose arithmetic may differ")
        check(header.fingerprint == fingerprint(flow, model.params), "it was made by another model")
        expected = (*flow.image_shape, flow.channels, levels, bool(model.config.data.frames))
        stated = (header.height, header.width, header.channels, header.levels, bool(header.frames))
        check(stated == expected, "it is damaged: its sizes are not those of the model")
        self._stack = AnsStack.from_bytes(stream)
        self._conditions = _stored_conditions(model, header)
        self._coders = GroupCoders(
            flow,
            model.params,
            levels,
            header.frames or None,
            header.rows,
            Resolution(header.pixel_bits, header.token_bits),
        )
        check(
            header.probe == probe(self._coders.last(), self._conditions.rows(slice(0, 1))),
            "it was made by a machine whose arithmetic differs: the same programs compute other numbers here",
        )
        self.names: tuple[str, ...] = ()
        self.labels: np.ndarray | None = None

    def parts(self) -> Iterator[tuple[int, int, np.ndarray]]:
        """Frames as they are decoded: the index of the first image, that of the frame (0), and uint8 [g, H, W, C].

        Raises:
          ValueError: the decoded images are not those of the encoder.
        """
        header, first, crc = self.header, 0, 0
        labels: list[np.ndarray] = []
        for index, size in reversed(list(enumerate(group_sizes(header.count, header.rows)))):
            cond = self._conditions.pop(self._stack, slice(first, first + size))
            if self._conditions.kind == "classes" and cond is not None:
                labels.append(cond)
            frames = self._coders.of_group(index).pop_group(self._stack, size, cond)
            for frame, images in enumerate(frames):
                crc = zlib.crc32(images.tobytes(), crc)
                yield first, frame, images
            first += size
        words = self._stack.words
        bottom = words[len(words) - header.bottom_words :] if header.bottom_words else []
        agrees = crc == header.pixels and self._stack.restored(bottom)
        check(agrees, "its images could not be restored: the arithmetic of this machine differs from the encoder's")
        self.names = _names(bottom, header.count)
        self.labels = np.concatenate(labels) if labels else None

    def all(self) -> np.ndarray:
        """All images, uint8 [n, H, W, C] or [n, T, H, W, C]; ValueError as `parts`."""
        images = np.zeros(self.header.shape, np.uint8)
        for first, frame, part in self.parts():
            index = (slice(first, first + len(part)), frame) if self.header.frames else slice(first, first + len(part))
            images[index] = part
        return images


def default_resolution(levels: int) -> Resolution:
    """Grids that are fine beside the cells of a pixel; still finer ones would take more initial bits."""
    if levels <= 17:
        return Resolution(3, 7)
    return Resolution(4 if levels < 64 else 2, 8)


def check_model(model: Run) -> int:
    """The number of levels of the pixels of a model.

    Raises:
      ValueError: the model is of vectors or latents, on several devices, or in it frames depend on later ones.
    """
    config = model.config
    check(
        not any(part.traits.vectors for part in config.data.parts),
        f"the model must be of pixels, got one of vectors (data.source={config.data.source!r}), which have no levels",
    )
    check(
        not config.data.on_latents,
        "the model must be of pixels, got one of latents: their density is none of the pixels, which the autoencoder "
        "restores with errors",
    )
    check(
        tree_layout(model.params) is None,
        "the model must be on one device, got a mesh, whose sums depend on the number of its devices",
    )
    check(
        not config.data.frames or is_frame_causal(config.flow),
        "the model must be causal in time (flow.temporal_causal), got one in which frames depend on later ones",
    )
    if config.data.levels is not None:
        return config.data.levels
    return open_source(config.data, "test", flow=config.flow, text=config.text).levels


def _checked_images(model: Run, images: np.ndarray, levels: int) -> np.ndarray:
    images, flow, clips = np.asarray(images), model.config.flow, bool(model.config.data.frames)
    frame = (*flow.image_shape, flow.channels)
    words = f"[n, {'T, ' if clips else ''}{', '.join(map(str, frame))}]"
    fits = images.ndim == (5 if clips else 4) and images.shape[-3:] == frame and images.size > 0
    check(fits, f"images must be integers {words}, got shape {list(images.shape)}")
    check(images.dtype.kind in "iu", f"images must be integers {words}, got {images.dtype}")
    check(len(images) <= MOST_IMAGES, f"images must be at most {MOST_IMAGES}, got {len(images)}")
    check(images.size <= MOST_VALUES, f"images must have at most {MOST_VALUES} pixels, got {images.size}")
    low, high = int(images.min()), int(images.max())
    check(
        low >= 0 and high < levels,
        f"images must have the {levels} levels of the model, 0 to {levels - 1}, got {low if low < 0 else high}",
    )
    return images.astype(np.uint8)


def _conditions(
    model: Run, images: np.ndarray, cond: str | Sequence[int] | Sequence[str] | np.ndarray | None, levels: int
) -> Conditions:
    flow = model.config.flow
    if flow.text_dim:
        texts = ("",) if cond is None or (isinstance(cond, str) and cond == "auto") else cond
        return caption_conditions(model, texts, len(images))
    if flow.num_classes:
        return class_conditions(model, images, cond, levels)
    nothing = cond is None or (isinstance(cond, str) and cond == "auto")
    check(nothing, f"cond must be None for this model, got {cond!r}")
    return Conditions("none")


def _stored_conditions(model: Run, header: Header) -> Conditions:
    """The conditions of a file: captions, or classes that are still in the stream."""
    flow, kind = model.config.flow, CONDITIONS[header.condition]
    fits = {"none": not flow.text_dim, "classes": flow.num_classes > 0, "captions": flow.text_dim > 0}[kind]
    check(fits, "it is damaged: its condition is not one of the model")
    if kind == "captions":
        return caption_conditions(model, header.captions, header.count)
    return Conditions(kind, classes=flow.num_classes)


def _parts(images: np.ndarray, sizes: Sequence[int]) -> Iterator[tuple[int, int, np.ndarray]]:
    """What `Decoder.parts` gives for these images."""
    first = 0
    for size in reversed(sizes):
        group = images[first : first + size]
        frames = group.swapaxes(0, 1) if images.ndim == 5 else group[None]
        yield from ((first, frame, part) for frame, part in enumerate(frames))
        first += size


def _crc(parts: Iterator[np.ndarray]) -> int:
    crc = 0
    for part in parts:
        crc = zlib.crc32(part.tobytes(), crc)
    return crc


def _name_words(names: Sequence[str]) -> list[int]:
    """Names as words of 16 bits; the data of the first group take their initial bits from them."""
    if not names:
        return []
    packed = zlib.compress(json.dumps(list(names)).encode(), 9)
    packed += b"\0" * (len(packed) % 2)
    return [int.from_bytes(packed[i : i + 2], "big") for i in range(0, len(packed), 2)]


def _names(words: Sequence[int], count: int) -> tuple[str, ...]:
    """The names in words at the bottom of a stream.

    Raises:
      ValueError: they are not one text for each of `count` images.
    """
    if not words:
        return ()
    packed, names = b"".join(word.to_bytes(2, "big") for word in words), None
    with contextlib.suppress(zlib.error, ValueError):
        names = parse_json(zlib.decompressobj().decompress(packed, MAX_TEXT_BYTES))
    fits = isinstance(names, list) and len(names) == count and all(isinstance(name, str) for name in names)
    check(fits, "it is damaged: its names are not one for each image")
    return tuple(names or ())
