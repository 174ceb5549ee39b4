"""The TPU's compiler accepts the attention kernels, and the compiled training step consists of them."""

from __future__ import annotations

import functools
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from starflow_jax.core.config import load_config
from starflow_jax.kernels.attention import Causal, FrameWindow, Full, attention
from starflow_jax.kernels.attention.packed import packed_attention, takes_packed
from starflow_jax.kernels.kernel_choice import device_target
from starflow_jax.nn.cache import KVCache

pytestmark = pytest.mark.slow
RELEASED = str(Path(__file__).parent.parent / "experiments" / "starflow_3b_t2i.py")
SHAPES = {"v5e": "v5e:2x2", "v5p": "v5p:2x2x1", "v6e": "v6e:2x2"}

CASES = [  # rule, queries, slots, heads, key heads, channels, dtype
    (Causal(), 1152, 1152, 4, 4, 64, "bfloat16"),
    (Causal(128), 1152, 1152, 4, 2, 128, "bfloat16"),
    (FrameWindow(128, 880, 2, 10), 18736, 18736, 2, 2, 64, "bfloat16"),
    (Causal(), 33646, 33646, 1, 1, 64, "bfloat16"),
    (Full(), 1000, 1000, 1, 1, 256, "bfloat16"),
    (Causal(), 300, 300, 1, 1, 64, "float32"),
]


def device(chip):
    pytest.importorskip("libtpu")
    from starflow_jax.core.config.mesh_config import MeshConfig
    from starflow_jax.costs.chips import topology
    from starflow_jax.planning.ahead_of_time import tpu_layout

    return tpu_layout(topology(SHAPES[chip]), MeshConfig()).mesh.devices.flat[0]


def compiled(function, shapes, dtype, one):
    sharding = jax.sharding.SingleDeviceSharding(one)
    arrays = [jax.ShapeDtypeStruct(shape, dtype, sharding=sharding) for shape in shapes]
    offset = jax.ShapeDtypeStruct((), jnp.int32, sharding=sharding)
    return jax.jit(function).lower(*arrays, offset).compile().as_text()


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("chip", SHAPES)
def test_the_kernels_fit(chip, case):
    rule, queries, slots, heads, kv_heads, dim, dtype = case
    one = device(chip)

    def total(query, key, value):
        out = attention(
            query, key, value, visibility=rule, implementation="pallas", target=device_target(one), precision="highest"
        )
        return jnp.sum(out.astype(jnp.float32) ** 2)

    shapes = [(1, heads, queries, dim), *2 * [(1, kv_heads, slots, dim)]]
    text = compiled(lambda q, k, v, _: jax.grad(total, (0, 1, 2))(q, k, v), shapes, dtype, one)
    assert "attention_forward" in text and "attention_backward" in text
    assert not square(text, slots)


@pytest.mark.parametrize(
    ("rule", "slots", "heads", "dim", "dtype"),
    [
        (Causal(), 1152, 8, 64, "bfloat16"),
        (Causal(128), 1024, 4, 128, "bfloat16"),
        (FrameWindow(128, 880, 2, 10), 18736, 2, 64, "bfloat16"),
        (Causal(), 300, 1, 64, "float32"),
    ],
)
@pytest.mark.parametrize("chip", SHAPES)
def test_the_packed_kernels_fit(chip, rule, slots, heads, dim, dtype):
    one = device(chip)
    options = {"visibility": rule, "target": device_target(one)}
    if not takes_packed((1, slots, heads, 3, dim), dtype, **options):
        assert chip == "v5p" and slots == 18736
        return

    def total(packed, cos, sin):
        out = packed_attention(packed, None, cos, sin, adjacent=True, scale=dim**-0.5, precision="highest", **options)
        return jnp.sum(out.astype(jnp.float32) ** 2)

    sharding = jax.sharding.SingleDeviceSharding(one)
    packed = jax.ShapeDtypeStruct((1, slots, heads, 3, dim), dtype, sharding=sharding)
    table = jax.ShapeDtypeStruct((slots, dim // 2), jnp.float32, sharding=sharding)
    text = jax.jit(jax.grad(total)).lower(packed, table, table).compile().as_text()
    assert "attention_forward" in text and "attention_backward" in text and not square(text, slots)


@pytest.mark.parametrize(
    ("chunk", "name"), [(1, "attention_decode"), (64, "attention_decode"), (512, "attention_forward")]
)
@pytest.mark.parametrize("chip", SHAPES)
def test_chunks_read_the_cache_in_place(chip, chunk, name):
    one, slots = device(chip), 8192

    def step(query, keys, values, offset):
        return attention(
            query, keys, values, visibility=Causal(), offset=offset, length=offset + chunk, layer=offset % 4,
            implementation="pallas", target=device_target(one),
        )  # fmt: skip

    shapes = [(1, 48, chunk, 64), *2 * [(4, 1, 48, slots, 64)]]
    assert name in compiled(step, shapes, "bfloat16", one)


@pytest.mark.parametrize("chunk", [1, 64])
def test_a_loop_over_chunks_never_transposes_its_cache(chunk):
    """The loop carries the cache in the kernel's layout: nothing of its size is copied or transposed between chunks."""
    one, layers, heads, slots, dim = device("v5e"), 3, 8, 4096, 64
    sharding = jax.sharding.SingleDeviceSharding(one)
    shape = (layers, 1, heads, slots, dim)

    def attended(kernels, h):
        def chunk_of(index, carry):
            h, cache = carry

            def layer(carry, number):
                h, cache = carry
                query, key, value = ((h @ w).reshape(1, chunk, heads, dim).swapaxes(1, 2) for w in kernels[number])
                cache = cache.write(number, index * chunk, key, value)
                out = attention(
                    query, cache.keys, cache.values, visibility=Causal(), offset=index * chunk, layer=number,
                    target=device_target(one),
                )  # fmt: skip
                return (h + out.swapaxes(1, 2).reshape(1, chunk, heads * dim), cache), None

            return jax.lax.scan(layer, (h, cache), jnp.arange(layers))[0]

        return jax.lax.fori_loop(
            0, slots // chunk, chunk_of, (h, KVCache.empty(layers, 1, heads, slots, dim, "bfloat16"))
        )[0]

    arrays = [
        jax.ShapeDtypeStruct(size, jnp.bfloat16, sharding=sharding)
        for size in ((layers, 3, heads * dim, heads * dim), (1, chunk, heads * dim))
    ]
    text = jax.jit(attended).lower(*arrays).compile().as_text()
    assert "attention_decode" in text
    size = ",".join(map(str, shape))
    opcodes = set(re.findall(rf"= bf16\[{size}\]\S* ([\w-]+)\(", text))
    assert opcodes and not opcodes & {"copy", "transpose"}, opcodes


@functools.cache
def train_step(chip):
    from starflow_jax.costs.chips import topology
    from starflow_jax.costs.flops import Work
    from starflow_jax.planning.ahead_of_time import tpu_layout
    from starflow_jax.planning.programs import training_program

    config = load_config(RELEASED, ["mesh.data=8", "mesh.fsdp=8", "train.accumulate=2"])
    layout = tpu_layout(topology(chip), config.mesh)
    program = training_program(config, Work(1024, None, 32, 32, 128), layout)
    return program.function.trace(*program.arguments).lower().compile().as_text()


def test_the_3b_train_step_is_made_of_kernels():
    pytest.importorskip("libtpu")
    text = train_step("v5e:8x8")
    for name in ("attention_forward", "attention_backward"):
        assert re.search(rf"custom-call\(.*{name}", text), name
    assert not square(text, 1024) and not square(text, 1152)


def square(text, count):
    """Arrays of the compiled program with two axes of the padded number of slots."""
    sizes = {count, -(-count // 128) * 128, -(-count // 512) * 512}
    shapes = set()
    for shape in re.findall(r"\w+\[([\d,]+)\]", text):
        if sum(int(size) in sizes for size in shape.split(",")) > 1:
            shapes.add(shape)
    return shapes
