"""Compares kernels over meshes of eight fake devices with the reference on one device.

    XLA_FLAGS=--xla_force_host_platform_device_count=8 python tests/kernels_on_eight_devices.py

The reference takes the place of the kernels, so the test is of the shards of each device. Prints the largest error
of attention, of its gradients, of those of a packed projection, of attention to a cache whose slots are divided and of
the Jacobi update as JSON, what that attention moves between devices, and the shapes of the query that each device gives
to cuDNN in programs for CUDA, which are only lowered.
"""

from __future__ import annotations

import functools
import json
import re
from types import SimpleNamespace
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
from jax._src.cudnn import fused_attention_stablehlo

from starflow_jax.core.config.mesh_config import AXES
from starflow_jax.flows.affine_head import AffineHead
from starflow_jax.flows.prediction import Prediction
from starflow_jax.kernels.attention import Causal, attention, reference
from starflow_jax.kernels.attention.rotary import Rotary
from starflow_jax.kernels.cuda_libraries import CudaLibraries
from starflow_jax.kernels.jacobi_update import api as jacobi_update
from starflow_jax.kernels.jacobi_update.reference import Operands, reference_update
from starflow_jax.kernels.kernel_choice import Target
from starflow_jax.nn.attention import _by_heads, _packed_by_heads
from starflow_jax.nn.cache import KVCache
from starflow_jax.nn.divided_cache import attend_to_intervals, cache_cuts
from starflow_jax.planning.collectives import collectives
from starflow_jax.sharding.layout import Layout

HEAD = AffineHead("softplus", 4.0, "ratio")


def layout(**sizes):
    shape = [sizes.get(axis, 1) for axis in AXES]
    return Layout(jax.sharding.Mesh(np.asarray(jax.devices()[: np.prod(shape)]).reshape(shape), AXES))


def normal(shape, seed):
    return jax.random.normal(jax.random.key(seed), shape)


def worst(ours, theirs):
    return max(
        float(jnp.max(jnp.abs(a - b))) for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True)
    )


def attention_error(over, batch, heads, kv_heads):
    """The error of a traced chunk with a layer of a cache, and of the gradients of whole sequences."""
    query = normal((batch, heads, 6, 16), 0)
    keys, values = (normal((2, batch, kv_heads, 11, 16), seed) for seed in (1, 2))
    attend = functools.partial(attention, visibility=Causal(3), implementation="xla")
    plain = functools.partial(reference.attention, visibility=Causal(3))
    chunk = jax.jit(lambda *a: _by_heads(over, attend, *a))(query, keys, values, jnp.int32(4), jnp.int32(1))
    by_arrays = functools.partial(jax.grad, argnums=(0, 1, 2))
    gradients = jax.jit(by_arrays(lambda *a: jnp.sum(_by_heads(over, attend, *a, 0, None) ** 2)))(
        query, keys[0], values[0]
    )
    expected = by_arrays(lambda *a: jnp.sum(plain(*a) ** 2))(query, keys[0], values[0])
    return max(worst(chunk, plain(query, keys[1], values[1], offset=4)), worst(gradients, expected))


def packed_error(over, batch, heads):
    """The error of the gradients of attention of a packed projection and its bias."""
    packed, bias, angles = normal((batch, 6, heads, 3, 16), 0), normal((heads, 3, 16), 1), normal((6, 8), 2)

    def plain(packed, bias, cos, sin):
        rotary = Rotary(adjacent=True, scale=0.25)
        operands = rotary.unpack((packed + bias).transpose(3, 0, 2, 4, 1), rotary.tables(cos, sin))
        return reference.attention(*operands, visibility=Causal())

    def gradients(attend):
        by_both = jax.grad(lambda *arrays: jnp.sum(attend(*arrays) ** 2), argnums=(0, 1))
        return jax.jit(by_both)(packed, bias, jnp.cos(angles), jnp.sin(angles))

    return worst(gradients(functools.partial(_packed_by_heads, over, plain)), gradients(plain))


def divided_error(over, count, dtype=jnp.float32):
    """The largest error of chunks at every slot of a divided cache of 24, whose content is checked; its collectives."""
    batch, heads, kv_heads, slots = 2, 4, 2, 24
    query, key, value = (normal((batch, n, count, 16), seed).astype(dtype) for n, seed in ((heads, 0), (2, 1), (2, 2)))
    filled = KVCache(*(normal((2, batch, kv_heads, slots, 16), seed).astype(dtype) for seed in (3, 4)))
    target, layer = Target("cpu"), jnp.int32(1)
    place = jax.tree.map(lambda a: over.sharding(a.shape, cache_cuts(over, kv_heads, "slots")), filled)
    run = jax.jit(functools.partial(attend_to_intervals, over, implementation="xla", target=target))
    arguments = (query, key, value, jax.tree.map(jax.device_put, filled, place))
    compiled = run.lower(*arguments, layer=layer, slot=jnp.int32(0)).compile()
    errors = []
    for slot in range(slots - count + 1):
        out, written = compiled(*arguments, layer=layer, slot=jnp.int32(slot))
        expected = filled.write(layer, slot, key, value)
        assert all(
            np.array_equal(a, b) for a, b in zip(jax.tree.leaves(written), jax.tree.leaves(expected), strict=True)
        )
        plain = reference.attention(query, expected.keys[1], expected.values[1], visibility=Causal(), offset=slot)
        errors.append(worst(out.astype(jnp.float32), plain.astype(jnp.float32)))
    return max(errors), [[one.kind, one.group_size] for one in collectives(compiled.as_text())]


def update_error(over, batch):
    out, z, x = normal((2 * batch, 5, 8), 0), normal((batch, 5, 4), 1), normal((batch, 5, 4), 2)
    span = jnp.tile(jnp.asarray([[1, 4]]), (batch, 1))

    def kernel(*operands, head, target, implementation):
        return reference_update(head, Operands(*operands))

    with mock.patch.multiple(jacobi_update, chosen=lambda *_, **__: "pallas", update=kernel):
        run = jax.jit(lambda out, *given: Prediction(out, jnp.float32(1.5), 0, HEAD, over).update(*given))
        updated = run(out, z, x, span)
    return worst(updated, reference_update(HEAD, Operands(out, z, x, span, 1.5, 0)))


def cudnn_queries(over, batch, heads, kv_heads):
    """The shapes of the queries of cuDNN's calls in the gradient of a bfloat16 attention over a mesh."""
    libraries = CudaLibraries(cudnn=91002)
    target = Target("gpu", "NVIDIA H200", "9.0", libraries)
    attend = functools.partial(attention, visibility=Causal(), implementation="cudnn", target=target)
    shapes = [jax.ShapeDtypeStruct((batch, h, 6, 16), jnp.bfloat16) for h in (heads, kv_heads, kv_heads)]
    gradients = jax.jit(jax.grad(lambda *a: jnp.sum(_by_heads(over, attend, *a, 0, None) ** 2), argnums=(0, 1, 2)))
    names = ("__cudnn$fmhaSoftmax", "__cudnn$fmhaSoftmaxBackward")
    unchecked = [jax.export.DisabledSafetyCheck.custom_call(name) for name in names]
    # JAX asks the installed library for its version.
    versions = SimpleNamespace(cudnn_get_version=lambda: libraries.cudnn)
    with mock.patch.object(fused_attention_stablehlo, "cuda_versions", versions):
        lowered = jax.export.export(gradients, platforms=["cuda"], disabled_checks=unchecked)(*shapes)
    calls = re.findall(r"custom_call @__cudnn\$fmhaSoftmax(?:Backward)?\(.* : \(tensor<(\w+)>", lowered.mlir_module())
    return sorted(set(calls))


def main():
    errors = {"attention": 0.0, "packed": 0.0, "update": 0.0}
    for over in (layout(data=2, tensor=4), layout(fsdp=2, tensor=2, sequence=2)):
        for shape in ((3, 4, 2), (4, 8, 8), (2, 4, 1)):
            errors["attention"] = max(errors["attention"], attention_error(over, *shape))
        errors["packed"] = max(errors["packed"], packed_error(over, 4, 8))
        for batch in (1, 4):
            errors["update"] = max(errors["update"], update_error(over, batch))
    meshes = [(layout(data=2, tensor=4), 4, 8, 8), (layout(fsdp=2, tensor=2, sequence=2), 2, 8, 2)]
    cudnn = [cudnn_queries(*arguments) for arguments in meshes]
    axes = {"fsdp": 2, "sequence": 4}
    # A chunk that does not divide over the devices, and one that does and is longer than an interval.
    divided = {str(count): divided_error(layout(**axes), count) for count in (5, 12)}
    divided["bfloat16"] = divided_error(layout(tensor=2, sequence=4), 8, jnp.bfloat16)
    print(json.dumps(errors | {"cudnn": cudnn, "divided": divided}))


if __name__ == "__main__":
    main()
