"""An interpreter of Pallas Mosaic GPU kernels: runs a kernel's own code on Python threads and numpy arrays.

JAX's interpreter of such kernels (0.10.2) supports neither persistent accumulators nor operands in registers. This one
supports what the attention kernels use: every warpgroup is a thread, barriers count arrivals and phases, copies arrive
at barriers, buffers are initialized with NaN. It models no registers, layouts or speed. A long wait is a deadlock.
"""

from __future__ import annotations

import itertools
import threading
from types import SimpleNamespace

import numpy as np

_PATIENCE = 60.0  # seconds
_LOCAL = threading.local()


class Ref:
    """A view of an array: `at` selects, `[...]` reads and writes."""

    def __init__(self, array):
        self.array = array

    @property
    def shape(self):
        return self.array.shape

    @property
    def dtype(self):
        return self.array.dtype

    @property
    def at(self):
        return _Getter(lambda index: Ref(self.array[_checked(index, self.array.shape)]))

    def __getitem__(self, index):
        return np.array(self.array[_checked(index, self.array.shape)])

    def __setitem__(self, index, value):
        assert np.shape(value) == self.array[index].shape
        self.array[index] = value


class _Getter:
    def __init__(self, get):
        self.get = get

    def __getitem__(self, index):
        return self.get(index)


def _checked(index, shape):
    """The index of an array, checked against its shape: a copy may not leave the array."""
    checked = []
    for entry, size in zip(index if isinstance(index, tuple) else (index,), shape, strict=False):
        if isinstance(entry, slice):
            assert entry == slice(None) or 0 <= entry.start <= entry.stop <= size, (entry, size)
            checked.append(entry)
        elif entry is Ellipsis:
            checked.append(entry)
        else:
            assert 0 <= int(entry) < size, (entry, size)
            checked.append(int(entry))
    return tuple(checked)


class Barrier:
    """A barrier with phases: a phase ends when all have arrived; every thread waits for one phase after another."""

    def __init__(self, num_arrivals=1):
        self.needed, self.arrived, self.phase = num_arrivals, 0, 0
        self.waited: dict[int, int] = {}  # phases that every thread has waited for
        self.condition = threading.Condition()

    def arrive(self):
        with self.condition:
            self.arrived += 1
            if self.arrived == self.needed:
                self.arrived, self.phase = 0, self.phase + 1
                self.condition.notify_all()

    def wait(self):
        thread = threading.get_ident()
        with self.condition:
            target = self.waited.get(thread, 0) + 1
            assert self.condition.wait_for(lambda: self.phase >= target, _PATIENCE), "deadlock"
            assert self.phase == target, "a phase was missed"
            self.waited[thread] = target


class _Layout:
    def reduce(self, axis):
        return self


def _when(condition):
    return lambda body: body() if bool(condition) else None


def _loop(first, last, body, carry):
    for index in range(int(first), int(last)):
        carry = body(np.int32(index), carry)
    return carry


def _broadcast(array, shape, axes):
    return np.broadcast_to(np.expand_dims(array, [a for a in range(len(shape)) if a not in axes]), shape)


def _wgmma(result, left, right):
    left, right = (np.asarray(getattr(a, "array", a), np.float32) for a in (left, right))
    result.array += left @ right


def _copy_in(source, target, barrier):
    target.array[...] = source.array
    barrier.arrive()


def _copy_out(source, target):
    target.array[...] = source.array


class _Shared:
    """Buffers that all warpgroups of a block share: the first one allocates them."""

    def __init__(self):
        self.lock: threading.Lock = threading.Lock()
        self.buffers = None


def _make(description):
    if isinstance(description, list | tuple):
        return [_make(one) for one in description]
    kind, shape, dtype = description.kind, description.shape, description.dtype
    if kind == "barrier":
        return SimpleNamespace(at=[Barrier(dtype) for _ in range(shape)])
    fill = 0 if kind == "acc" else (np.nan if np.dtype(dtype).kind not in "iu" else -(2**30))
    return Ref(np.full(shape, fill, dtype))


def _run_scoped(body, *descriptions, collective_axes=None):
    if collective_axes is None:
        return body(*_make(descriptions))
    with _LOCAL.block.lock:
        if _LOCAL.block.buffers is None:
            _LOCAL.block.buffers = _make(descriptions)
    return body(*_LOCAL.block.buffers)


def _run_state(body):
    def run(value):
        result = Ref(np.array(value, np.float32))
        body(result)
        return result.array

    return run


def _kernel(body, *, out_type, grid, grid_names, num_threads, kernel_name, thread_name, compiler_params, interpret):
    def run(*arrays):
        refs = [Ref(np.asarray(a)) for a in arrays]
        types = out_type if isinstance(out_type, list) else [out_type]
        outs = [Ref(np.full(t.shape, np.nan, t.dtype)) for t in types]
        for point in itertools.product(*map(range, grid)):
            block, failures = _Shared(), []

            def thread(index, point=point, block=block, failures=failures):
                axes = dict(zip(grid_names, point, strict=True)) | {thread_name: index}
                _LOCAL.axes, _LOCAL.sizes, _LOCAL.block = axes, dict(zip(grid_names, grid, strict=True)), block
                try:
                    body(*refs, *outs)
                except BaseException as error:
                    failures.append(error)

            threads = [threading.Thread(target=thread, args=(n,)) for n in range(num_threads)]
            for one in threads:
                one.start()
            for one in threads:
                one.join()
            if failures:
                raise failures[0]
        results = [ref.array for ref in outs]
        return results if isinstance(out_type, list) else results[0]

    return run


def _accumulator(shape, dtype):
    return SimpleNamespace(kind="acc", shape=shape, dtype=dtype)


_accumulator.init = lambda value: value

PALLAS = SimpleNamespace(
    when=_when, ds=lambda start, size: slice(int(start), int(start) + size), run_scoped=_run_scoped,
    run_state=_run_state,
)  # fmt: skip
MOSAIC = SimpleNamespace(
    kernel=_kernel,
    CompilerParams=lambda **_: None,
    SMEM=lambda shape, dtype, transforms=(): SimpleNamespace(kind="smem", shape=shape, dtype=dtype),
    ACC=_accumulator,
    Barrier=lambda num_arrivals=1, num_barriers=1: SimpleNamespace(
        kind="barrier", shape=num_barriers, dtype=num_arrivals
    ),
    TilingTransform=lambda *_: None,
    SwizzleTransform=lambda *_: None,
    Layout=SimpleNamespace(WGMMA=_Layout()),
    load=lambda ref, _, layout: ref[...],
    layout_cast=lambda array, _: np.asarray(array),
    broadcasted_iota=lambda dtype, shape, axis, layout: _broadcast(np.arange(shape[axis], dtype=dtype), shape, [axis]),
    wgmma=_wgmma,
    transpose_ref=lambda ref, _: Ref(ref.array.T),
    copy_gmem_to_smem=_copy_in,
    copy_smem_to_gmem=_copy_out,
    barrier_wait=lambda barrier: barrier.wait(),
    barrier_arrive=lambda barrier: barrier.arrive(),
    commit_smem=lambda: None,
    wait_smem_to_gmem=lambda _: None,
    set_max_registers=lambda *_, **__: None,
)
LAX = SimpleNamespace(
    axis_index=lambda name: np.int32(_LOCAL.axes[name]),
    axis_size=lambda name: np.int32(_LOCAL.sizes[name]),
    rem=lambda a, b: np.int32(a) % np.int32(b),
    div=lambda a, b: np.int32(a) // np.int32(b),
    fori_loop=_loop,
    broadcast_in_dim=_broadcast,
)
