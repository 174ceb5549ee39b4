"""A plain PyTorch transformer of the same shapes as a flow, as a side of a comparison.

It has the blocks, layers, widths and heads of the flow: dense layers with biases, layer norms before attention and MLP,
an MLP with GELU, causal `scaled_dot_product_attention`, and the affine update of tokens at the output. It has no rotary
positions, no permutation of tokens, no log-determinants and no tests for convergence, so that it does less than a flow.
Its inverse decodes with a key/value cache of the same number of evaluations of the same chunks, and attends to the
filled part of the cache. Its weights are its own: nothing of it is comparable but the time.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from side_process import Side
from torch import nn

Cache = list[tuple[torch.Tensor, torch.Tensor]]


class Layer(nn.Module):
    """One pre-norm layer."""

    def __init__(self, sizes: Mapping[str, Any]):
        super().__init__()
        self.heads, self.kv_heads, self.head_dim = sizes["heads"], sizes["kv_heads"], sizes["head_dim"]
        width, hidden = sizes["width"], sizes["expansion"] * sizes["width"]
        self.norms = nn.ModuleList([nn.LayerNorm(width), nn.LayerNorm(width)])
        self.qkv = nn.Linear(width, (self.heads + 2 * self.kv_heads) * self.head_dim)
        self.proj = nn.Linear(self.heads * self.head_dim, width)
        self.mlp = nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width))

    def forward(self, h: torch.Tensor, mask: torch.Tensor | str, cache: tuple[torch.Tensor, ...] | None, start: int):
        """h [B, n, width]; a cache gets the keys and values of the n tokens at `start`, and is read up to them."""
        rows, count, _ = h.shape
        parts = (self.heads, self.kv_heads, self.kv_heads)
        packed = self.qkv(self.norms[0](h)).split([part * self.head_dim for part in parts], dim=-1)
        q, k, v = (p.view(rows, count, n, self.head_dim).transpose(1, 2) for p, n in zip(packed, parts, strict=True))
        if cache is not None:
            for stored, new in zip(cache, (k, v), strict=True):
                stored[:, :, start : start + count] = new
            k, v = (stored[:, :, : start + count] for stored in cache)
        options: dict[str, Any] = {"is_causal": True} if isinstance(mask, str) else {"attn_mask": mask}
        if self.kv_heads != self.heads:
            options["enable_gqa"] = True
        mixed = F.scaled_dot_product_attention(q, k, v, **options)
        h = h + self.proj(mixed.transpose(1, 2).reshape(rows, count, -1))
        return h + self.mlp(self.norms[1](h))


class Block(nn.Module):
    """Text and tokens in, channels of each token out."""

    def __init__(self, sizes: Mapping[str, Any]):
        super().__init__()
        self.sizes = sizes
        width = sizes["width"]
        self.proj_in = nn.Linear(sizes["channels"], width)
        self.proj_text = nn.Linear(sizes["text_channels"], width) if sizes["text_channels"] else None
        self.layers = nn.ModuleList([Layer(sizes) for _ in range(sizes["layers"])])
        self.norm = nn.LayerNorm(width)
        self.proj_out = nn.Linear(width, sizes["outputs"])
        nn.init.normal_(self.proj_out.weight, std=0.02)

    def read(self, text: torch.Tensor) -> torch.Tensor:
        """Text states as inputs of the layers."""
        return text if self.proj_text is None else self.proj_text(text)

    def through(
        self, h: torch.Tensor, mask: torch.Tensor | str, cache: Cache | None = None, start: int = 0
    ) -> torch.Tensor:
        """The layers."""
        for index, layer in enumerate(self.layers):
            h = layer(h, mask, None if cache is None else cache[index], start)
        return h

    def forward(self, tokens: torch.Tensor, text: torch.Tensor | None, mask: torch.Tensor | str) -> torch.Tensor:
        """tokens [B, N, channels], text [B, L, text_channels]."""
        h = self.proj_in(tokens)
        h = h if text is None else torch.cat([self.read(text), h], dim=1)
        h = self.through(h, mask)
        return self.proj_out(self.norm(h if text is None else h[:, text.shape[1] :]))

    def cache(self, rows: int) -> Cache:
        """An empty cache of all slots."""
        sizes = self.sizes
        shape = (rows, sizes["kv_heads"], sizes["text"] + sizes["tokens"], sizes["head_dim"])
        return [(torch.zeros(shape), torch.zeros(shape)) for _ in self.layers]


def affine(out: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and scale of the outputs."""
    scale, mean = out.chunk(2, dim=-1)
    return mean, F.softplus(scale + 0.5413)


def prepare(request: Mapping[str, Any]) -> Side:
    """Builds the transformer.

    The request has `blocks` and `denoiser` (sizes by name, or None), `inverses` (chunks of each inverse by name), and
    `threads`.
    """
    torch.set_num_threads(request["threads"])
    torch.manual_seed(0)
    blocks = nn.ModuleList([Block(sizes) for sizes in request["blocks"]])
    inputs = [_inputs(sizes) for sizes in request["blocks"]]
    operations: dict[str, Any] = {
        "forward": functools.partial(forward, blocks, inputs),
        "forward+backward": functools.partial(gradients, blocks, inputs),
    }
    if request["denoiser"]:
        denoiser = Block(request["denoiser"])
        entered = _inputs(request["denoiser"])
        operations["denoiser"] = functools.partial(_denoise, denoiser, *entered, denoiser_mask(request["denoiser"]))
    for name, chunks in request["inverses"].items():
        operations[name] = functools.partial(invert, blocks, chunks)
    return Side(operations, lambda name, result: {"result": np.zeros(())}, versions={"torch": torch.__version__})


def _inputs(sizes: Mapping[str, Any]) -> tuple[torch.Tensor, torch.Tensor | None]:
    tokens = torch.randn(sizes["batch"], sizes["tokens"], sizes["channels"])
    channels = sizes["text_channels"] or sizes["width"]
    return tokens, torch.randn(sizes["batch"], sizes["text"], channels) if sizes["text"] else None


def _loss(blocks: nn.ModuleList, inputs: Sequence[tuple[torch.Tensor, torch.Tensor | None]]) -> torch.Tensor:
    tokens, total = inputs[0][0], torch.zeros(())
    for block, (own, text) in zip(blocks, inputs, strict=True):
        mean, scale = affine(block(tokens.reshape(own.shape), text, "causal"))
        tokens = (tokens.reshape(own.shape) - mean) / scale
        total = total + scale.log().mean()
    return 0.5 * (tokens**2).mean() + total


@torch.no_grad()
def forward(blocks: nn.ModuleList, inputs: Sequence[tuple[torch.Tensor, torch.Tensor | None]]) -> torch.Tensor:
    """One parallel pass through all blocks."""
    return _loss(blocks, inputs)


def gradients(blocks: nn.ModuleList, inputs: Sequence[tuple[torch.Tensor, torch.Tensor | None]]) -> torch.Tensor:
    """The pass, and the gradients of all parameters."""
    blocks.zero_grad()
    loss = _loss(blocks, inputs)
    loss.backward()
    return loss


@torch.no_grad()
def _denoise(block: Block, tokens: torch.Tensor, text: torch.Tensor | None, mask: torch.Tensor) -> torch.Tensor:
    return block(tokens, text, mask)


def denoiser_mask(sizes: Mapping[str, Any]) -> torch.Tensor | None:
    """Whether a query sees a key: all text, and frames within the window and the look-ahead; None where it sees all."""
    if sizes["frames"] is None or sizes["look_ahead"] is None:
        return None
    frame = torch.arange(sizes["tokens"]) * sizes["frames"] // sizes["tokens"]
    query = torch.cat([torch.zeros(sizes["text"], dtype=torch.long), frame])
    distance = frame[None] - query[:, None]
    seen = distance < sizes["look_ahead"]
    if sizes["window"] is not None:
        seen &= distance >= sizes["look_ahead"] - 1 - sizes["window"]
    return torch.cat([torch.ones(len(query), sizes["text"], dtype=torch.bool), seen], dim=1)


@torch.no_grad()
def invert(blocks: nn.ModuleList, chunks: Sequence[Mapping[str, int]]) -> torch.Tensor:
    """Decodes chunk after chunk; in a sequential chunk, each evaluation is of the next token."""
    caches: dict[int, Cache] = {}
    x = torch.zeros(())
    for chunk in chunks:
        block, rows, count, start = blocks[chunk["block"]], chunk["sequences"], chunk["tokens"], chunk["start"]
        if chunk["block"] not in caches:
            cache = caches[chunk["block"]] = block.cache(rows)
            if chunk["text"]:
                states = torch.randn(rows, chunk["text"], block.sizes["text_channels"] or block.sizes["width"])
                block.through(block.read(states), "causal", cache, 0)
        cache = caches[chunk["block"]]
        noise = torch.randn(rows, count, block.sizes["channels"])
        mask = torch.ones(count, start + count, dtype=torch.bool).tril(start) if count > 1 else None
        x = noise
        for evaluation in range(chunk["evaluations"]):
            at = start + evaluation if count == 1 else start
            mean, scale = affine(block.proj_out(block.norm(block.through(block.proj_in(x), mask, cache, at))))
            x = mean + scale * noise
    return x
