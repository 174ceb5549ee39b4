"""A pre-norm transformer; its layers are stacked and scanned, so that compile time does not grow with depth."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float, Int, PRNGKeyArray

from starflow_jax.core.config.transformer_config import TransformerConfig
from starflow_jax.kernels.attention import Visibility
from starflow_jax.kernels.attention.derivatives import OPERANDS_NAME, RESULTS_NAME
from starflow_jax.kernels.attention.reference import stores_weights
from starflow_jax.nn.attention import OUTPUT_NAME, Attention, layout_target
from starflow_jax.nn.branch_norm import AdaptiveNorm, Condition, Modulation, branch_norm, gated, normed
from starflow_jax.nn.cache import KVCache
from starflow_jax.nn.divided_cache import cache_cuts, divides_slots
from starflow_jax.nn.gelu import gelu
from starflow_jax.nn.linear import Compute, RMSNorm
from starflow_jax.nn.quantised_linear import dense
from starflow_jax.nn.rope import Rotation
from starflow_jax.sharding.layout import placed

_BRANCH_NAME, _HIDDEN_NAME = "attention_branch", "mlp_hidden"
# What each value of `FlowConfig.remat` that recomputes a layer saves of it, besides its input.
SAVED_NAMES: dict[str, tuple[str, ...]] = {
    "block": (),
    "dense": (RESULTS_NAME,),
    "pointwise": (OPERANDS_NAME, RESULTS_NAME, _BRANCH_NAME, _HIDDEN_NAME),
}


class MLP(nnx.Module):
    """The MLP branch of a layer; gated by a GELU or SiLU, or two layers around an exact GELU."""

    def __init__(self, config: TransformerConfig, key: PRNGKeyArray, compute: Compute):
        c = config
        hidden = c.expansion * c.width
        keys = jax.random.split(key, 3)
        self.norm = branch_norm(c.norm, c.width, key, compute)
        has_gate = c.mlp != "gelu"
        self.gate = dense(c.width, hidden, keys[0], name="gate", bias=c.bias, compute=compute) if has_gate else None
        self.kind = c.mlp
        self.up = dense(c.width, hidden, keys[1], name="up", bias=c.bias, compute=compute)
        std = (2 * c.layers * hidden) ** -0.5
        self.down = dense(hidden, c.width, keys[2], name="down", bias=c.bias, std=std, compute=compute)
        self.layout = compute.layout
        self.post_norm = RMSNorm(c.width) if c.post_norm else None

    def __call__(
        self, h: Float[Array, "B n D"], condition: Condition | Modulation | None = None
    ) -> Float[Array, "B n D"]:
        """The branch's output for h: [B, n, D]; condition: what an adaptive norm reads."""
        x, branch_gate = normed(self.norm, h, condition)
        hidden = checkpoint_name(placed(self.layout, self.up(x), "channels"), _HIDDEN_NAME)
        if self.gate is None:
            out = self.down(gelu(hidden))
        else:
            gate = checkpoint_name(placed(self.layout, self.gate(x), "channels"), _HIDDEN_NAME)
            gate = jax.nn.silu(gate) if self.kind == "swiglu" else jax.nn.gelu(gate, approximate=True)
            out = self.down(gate * hidden)
        return gated(out if self.post_norm is None else self.post_norm(out), branch_gate)


class Layer(nnx.Module):
    """h + attention(h), then h + mlp(h)."""

    def __init__(self, config: TransformerConfig, key: PRNGKeyArray, compute: Compute):
        first, second = jax.random.split(key)
        self.attention = Attention(config, first, compute)
        self.mlp = MLP(config, second, compute)


# Those of the norms in front of attention and in front of the MLP, of one layer or stacked.
LayerModulations = tuple[Modulation, Modulation]


def _dropout(x: Float[Array, "B n D"], rate: float, key: PRNGKeyArray | None) -> Float[Array, "B n D"]:
    if key is None or rate == 0.0:
        return x
    mask = jax.random.bernoulli(key, 1.0 - rate, x.shape)
    return jnp.where(mask, x / (1.0 - rate), 0.0)


class Transformer(nnx.Module):
    """`config.layers` layers and, with `config.final_norm`, an RMSNorm.

    The first `shared` of these layers belong to several transformers: they are an argument of a call (`shared_layers`).
    """

    def __init__(
        self,
        config: TransformerConfig,
        key: PRNGKeyArray,
        *,
        compute: Compute = Compute(),  # noqa: B008 (frozen)
        remat: str = "none",
        dropout: float = 0.0,
        shared: int = 0,
    ):
        self.layers = jax.vmap(lambda k: Layer(config, k, compute))(jax.random.split(key, config.layers - shared))
        self.final_norm = RMSNorm(config.width) if config.final_norm else None
        self.config = config
        self.compute = compute
        self.remat = remat
        self.dropout = dropout

    def empty_cache(self, batch: int, slots: int) -> KVCache:
        """A cache for `slots` positions."""
        c, layout = self.config, self.compute.layout
        # A multiple of 8 slots, as GPUs copy 8 at a time; the mask hides those after the last.
        multiple = 8
        by_slots = divides_slots(layout, c.kv_heads, self.compute.cache)
        if layout is not None and by_slots:
            multiple *= layout.size("sequence")
        slots = -(-slots // multiple) * multiple
        cache = KVCache.empty(c.layers, batch, c.kv_heads, slots, c.head_dim, self.compute.dtype)
        if layout is None or not by_slots:
            return cache
        cuts = cache_cuts(layout, c.kv_heads, self.compute.cache)
        divided: KVCache = jax.tree.map(lambda array: layout.constrain(array, cuts), cache)
        return divided

    def modulations(
        self, condition: Float[Array, "rows 1 D"], shared_layers: Layer | None = None
    ) -> tuple[LayerModulations, ...]:
        """What the adaptive norms of all layers compute from a condition of all slots, [B or 1, 1, D].

        Calls with these in place of the condition give the same results, and loops over calls do not repeat the
        products.
        """
        condition = placed(self.compute.layout, condition, "hidden")

        def of_layer(layer: Layer) -> LayerModulations:
            norms = layer.attention.norm, layer.mlp.norm
            first, second = (norm.modulated(condition) for norm in norms if isinstance(norm, AdaptiveNorm))
            return first, second

        return tuple(jax.lax.map(of_layer, layers) for layers in self._stacks(shared_layers))

    def _stacks(self, shared_layers: Layer | None) -> tuple[Layer, ...]:
        """The stacked layers in the order in which they run."""
        return (self.layers,) if shared_layers is None else (shared_layers, self.layers)

    def __call__(
        self,
        h: Float[Array, "B n D"],
        *,
        rotation: Rotation | None,
        visibility: Visibility,
        temperature: float | Float[Array, ""] | Float[Array, "B"] | None = None,
        cache: KVCache | None = None,
        slot: int | Int[Array, ""] = 0,
        dropout_key: PRNGKeyArray | None = None,
        shared_layers: Layer | None = None,
        condition: Condition | tuple[LayerModulations, ...] | None = None,
    ) -> tuple[Float[Array, "B n D"], KVCache | None]:
        """Runs h: [B, n, D], occupying slots slot .. slot + n - 1.

        Args:
          h: hidden states.
          rotation: rotary table of these n slots.
          visibility: the attention mask (over the slots of the cache, or without one over these n).
          temperature: divides the attention logits, [B] or scalar.
          cache: keys and values of the slots before; returned with these n written.
          slot: first slot (may be traced).
          dropout_key: turns dropout on.
          shared_layers: stacked layers of the same configuration that run before those of this transformer.
          condition: what adaptive norms read, of every slot or, with one slot, of all; or its `modulations`.

        Returns:
          Hidden states [B, n, D] in the compute dtype, and the cache (None if none was given).
        """
        attend_options: dict[str, Any] = {"rotation": rotation, "visibility": visibility, "temperature": temperature}

        def attend(
            layer: Layer, h: jax.Array, cache: KVCache | None, index: jax.Array, read: Condition | Modulation | None
        ) -> tuple[jax.Array, KVCache | None]:
            return layer.attention(h, cache=cache, layer=index, slot=slot, condition=read, **attend_options)

        def feed(layer: Layer, h: jax.Array, read: Condition | Modulation | None) -> jax.Array:
            return layer.mlp(h, read)

        if self.remat == "attention":
            attend = jax.checkpoint(attend)
        if self.remat == "mlp":
            feed = jax.checkpoint(feed)

        def step(carry: tuple[jax.Array, KVCache | None], inputs: Any) -> tuple[tuple[jax.Array, KVCache | None], None]:
            h, cache = carry
            h = placed(self.compute.layout, h, "hidden")
            layer, index, key, given = inputs
            reads = (shared, shared) if given is None else given
            keys = (None, None) if key is None else jax.random.split(key)
            branch, cache = attend(layer, h, cache, index, reads[0])
            branch = checkpoint_name(branch, _BRANCH_NAME)
            h = placed(self.compute.layout, h + _dropout(branch, self.dropout, keys[0]), "hidden")
            h = h + _dropout(feed(layer, h, reads[1]), self.dropout, keys[1])
            return (placed(self.compute.layout, h, "hidden"), cache), None

        if self.remat in SAVED_NAMES:
            step = jax.checkpoint(step, policy=jax.checkpoint_policies.save_only_these_names(*SAVED_NAMES[self.remat]))
        elif self.remat == "none" and cache is None and layout_target(self.compute.layout).platform == "cpu":
            # The backward pass recomputes everything but products: on a CPU, writing and reading what is cheap to
            # compute takes as long, and more than twice the memory. Inside the attention of a long sequence nothing is
            # stored, since its products (those with batch dimensions) are of size tokens x tokens.
            policies = jax.checkpoint_policies
            policy = policies.dots_saveable
            if not stores_weights(h.shape[1], h.shape[1]):
                policy = policies.save_from_both_policies(
                    policies.dots_with_no_batch_dims_saveable, policies.save_only_these_names(OUTPUT_NAME)
                )
            step = jax.checkpoint(step, policy=policy, prevent_cse=False)
        keys = None if dropout_key is None else jax.random.split(dropout_key, self.config.layers)
        h, first = h.astype(self.compute.dtype), 0
        stacks = self._stacks(shared_layers)
        modulations: tuple[LayerModulations | None, ...] = (None,) * len(stacks)
        shared: Condition | None = None  # by all layers
        if isinstance(condition, tuple):
            modulations = condition
        elif condition is not None:
            shared = placed(self.compute.layout, condition, "hidden")
        for layers, given in zip(stacks, modulations, strict=True):
            last = first + jax.tree.leaves(layers)[0].shape[0]
            its_keys = None if keys is None else keys[first:last]
            (h, cache), _ = jax.lax.scan(step, (h, cache), (layers, jnp.arange(first, last), its_keys, given))
            first = last
        return (h if self.final_norm is None else self.final_norm(h)), cache
