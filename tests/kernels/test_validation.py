"""What the kernels refuse: every operand is checked before a pointer is followed."""

from __future__ import annotations

import threading
from collections.abc import Callable

import numpy as np
import pytest
from kernels.cases import context, random_weight, step_of

from rllama._kernels import core
from rllama.errors import BackendError, ConfigError, ShapeError

ISA = core.isa_levels()[0][0]


def buf(n_rows: int, n_cols: int) -> core.Buf:
    return core.Buf.zeros(n_rows, n_cols)


def table(half: int = 4, max_seq_len: int = 64) -> core.RopeTable:
    return core.RopeTable(np.ones(half), max_seq_len)


def store(groups: list[tuple[tuple[int, ...], int]] | None = None, **sizes: int) -> core.KVStore:
    """Two layers in four pages, unless said otherwise."""
    sizes = {"n_kv_heads": 2, "head_dim": 8} | sizes
    return core.KVStore([((0, 1), 4)] if groups is None else groups, *sizes.values(), "f16")


def weight(n_rows: int = 5, n_cols: int = 32, fmt: str = "F32") -> core.Weight:
    return random_weight(fmt, n_rows, n_cols, seed=1).weight


def spec(layer: int = 0, **kind: object) -> core.AttendSpec:
    return context(ISA).attend_spec(layer, **{"scale": 0.5} | kind)  # type: ignore[arg-type]


def attend(**changes: object) -> None:
    given: dict[str, object] = {
        "q": buf(2, 32), "k": buf(2, 16), "v": buf(2, 16), "kv": store(), "spec": spec(),
        "step": step_of([0, 1]), "out": buf(2, 32),
    }  # fmt: skip
    context(ISA).attend(*(given | changes).values())  # type: ignore[arg-type]


def twice(first: int, second: int) -> None:
    """Two layers in one step; the page before the first one's window is not there."""
    kv, step = store(), step_of([65, 66], page_table=np.array([[-1, 0]], dtype=np.int32))
    attend(kv=kv, step=step, spec=spec(0, window=first))
    attend(kv=kv, step=step, spec=spec(1, window=second))


CALLS: dict[str, Callable[[], object]] = {
    "matmul width": lambda: context(ISA).matmul(buf(2, 31), (weight(),), (buf(2, 5),)),
    "matmul out rows": lambda: context(ISA).matmul(buf(2, 32), (weight(),), (buf(3, 5),)),
    "matmul out columns": lambda: context(ISA).matmul(buf(2, 32), (weight(),), (buf(2, 6),)),
    "matmul no weights": lambda: context(ISA).matmul(buf(2, 32), (), ()),
    "matmul missing out": lambda: context(ISA).matmul(buf(2, 32), (weight(),), ()),
    "matmul too many": lambda: context(ISA).matmul(buf(2, 32), (weight(),) * 17, (buf(2, 5),) * 17),
    "matmul_add out": lambda: context(ISA).matmul_add(buf(2, 32), weight(), buf(2, 4)),
    "norm width": lambda: context(ISA).rms_norm(buf(2, 31), weight(1), 1e-5, buf(2, 31)),
    "norm out": lambda: context(ISA).rms_norm(buf(2, 32), weight(1), 1e-5, buf(1, 32)),
    "norm part of a head": lambda: context(ISA).rms_norm(buf(2, 48), weight(1), 1e-5, buf(2, 48)),
    "norm two rows": lambda: context(ISA).rms_norm(buf(2, 32), weight(2), 1e-5, buf(2, 32)),
    "norm in F16": lambda: context(ISA).rms_norm(
        buf(2, 32), weight(1, 32, "F16"), 1e-5, buf(2, 32)
    ),
    "glu shapes": lambda: context(ISA).glu(buf(2, 8), buf(2, 9)),
    "glu activation": lambda: context(ISA).glu(buf(2, 8), buf(2, 8), "relu"),
    "add shapes": lambda: context(ISA).add(buf(1, 8), buf(2, 8)),
    "bias width": lambda: context(ISA).add_bias(buf(2, 31), weight(1)),
    "bias two rows": lambda: context(ISA).add_bias(buf(2, 32), weight(2)),
    "bias in F16": lambda: context(ISA).add_bias(buf(2, 32), weight(1, 32, "F16")),
    "softcap of nothing": lambda: context(ISA).softcap(buf(2, 8), 1.0, 0.0),
    "embed id": lambda: context(ISA).embed(step_of([0], token_ids=[5]), weight(), buf(1, 32)),
    "embed out": lambda: context(ISA).embed(step_of([0], token_ids=[4]), weight(), buf(1, 33)),
    "grow tokens": lambda: context(ISA).grow(buf(2, 8), step_of([0]), 0.1, 4),
    "grow length": lambda: context(ISA).grow(buf(1, 8), step_of([0]), 0.1, 0),
    "rope style": lambda: context(ISA).rope(buf(1, 8), buf(1, 8), step_of([0]), table(), "other"),
    "rope width": lambda: context(ISA).rope(buf(1, 12), buf(1, 8), step_of([0]), table(), "half"),
    "rope tokens": lambda: context(ISA).rope(buf(2, 8), buf(2, 8), step_of([0]), table(), "half"),
    "rope far": lambda: context(ISA).rope(buf(1, 8), buf(1, 8), step_of([64]), table(), "half"),
    "gather rows": lambda: context(ISA).gather(
        buf(2, 8), step_of([0, 1], logit_rows=[1]), buf(2, 8)
    ),
    "attend layer": lambda: attend(spec=spec(2)),
    "attend sinks": lambda: attend(spec=spec(sinks=weight(1, 5))),
    "spec layer below": lambda: spec(-1),
    "spec window below": lambda: spec(window=-1),
    "spec scale": lambda: spec(scale=float("nan")),
    "spec softcap": lambda: spec(softcap=-1.0),
    "spec sinks in F16": lambda: spec(sinks=weight(1, 32, "F16")),
    "spec sinks of two rows": lambda: spec(sinks=weight(2)),
    "attend k width": lambda: attend(k=buf(2, 8)),
    "attend heads": lambda: attend(q=buf(2, 24), out=buf(2, 24)),
    "attend out": lambda: attend(out=buf(2, 16)),
    "attend tokens": lambda: attend(step=step_of([0])),
    "attend page beyond": lambda: attend(
        step=step_of([0, 1], page_table=np.array([[4]], dtype=np.int32))
    ),
    "attend page missing": lambda: attend(
        step=step_of([0, 1], page_table=np.array([[-1]], dtype=np.int32))
    ),
    "attend page in the window missing": lambda: attend(
        spec=spec(window=3),
        step=step_of([65, 66], page_table=np.array([[-1, 0]], dtype=np.int32)),
    ),
    "attend one table for two groups": lambda: attend(kv=store([((0,), 4), ((1,), 4)])),
    "attend wider window after a narrow one": lambda: twice(2, 3),
    "attend everything after a window": lambda: twice(2, 0),
    "attend table short": lambda: attend(step=step_of([63, 64])),
    "step negative id": lambda: step_of([0], token_ids=[-1]),
    "step negative position": lambda: step_of([-1]),
    "step gap": lambda: step_of([0, 2]),
    "step empty sequence": lambda: step_of([0, 1], seq_start=[0, 0, 2]),
    "step sequence beyond": lambda: step_of([0, 1], seq_start=[0, 1 << 30, 2]),
    "step start": lambda: step_of([0, 1], seq_start=[1, 2]),
    "step end": lambda: step_of([0, 1], seq_start=[0, 1]),
    "step table rows": lambda: step_of([0], page_table=np.zeros((2, 1), dtype=np.int32)),
    "step no pages": lambda: step_of([0], page_table=np.zeros((1, 0), dtype=np.int32)),
    "step logit row": lambda: step_of([0], logit_rows=[1]),
    "step no tokens": lambda: step_of([]),
    "weight format": lambda: core.Weight(np.zeros(4, dtype=np.uint8), 6, 1, 1),
    "weight format below": lambda: core.Weight(np.zeros(4, dtype=np.uint8), -1, 1, 1),
    "weight bytes": lambda: core.Weight(np.zeros(33, dtype=np.uint8), 3, 1, 32),
    "weight part of a block": lambda: core.Weight(np.zeros(34, dtype=np.uint8), 3, 1, 31),
    "weight no rows": lambda: core.Weight(np.zeros(0, dtype=np.uint8), 0, 0, 8),
    "buf type": lambda: core.Buf(np.zeros((2, 2))),  # type: ignore[arg-type]
    "buf axes": lambda: core.Buf(np.zeros(2, dtype=np.float32)),
    "buf order": lambda: core.Buf(np.zeros((4, 4), dtype=np.float32)[:, ::2]),
    "rope table empty": lambda: core.RopeTable(np.zeros(0), 4),
    "rope table length": lambda: core.RopeTable(np.ones(4), 0),
    "rope table head": lambda: core.RopeTable(np.ones(4), 4, 1.0, 6),
    "store no pages": lambda: store([((0,), 0)]),
    "store no layers": lambda: store([((), 4)]),
    "store no groups": lambda: store([]),
    "store layer twice": lambda: store([((0, 1), 4), ((1,), 4)]),
    "store layer left out": lambda: store([((0, 2), 4)]),
    "store no heads": lambda: store(n_kv_heads=0),
}


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_validation_refuses(call: Callable[[], object]) -> None:
    with pytest.raises(ValueError, match=r"\w"):  # ShapeError is one; numpy's own are others
        call()


def test_validation_says_what_is_wrong() -> None:
    with pytest.raises(ShapeError, match=r"matmul: x \(2, 31\) w \(5, 32\) out \(2, 5\)"):
        CALLS["matmul width"]()
    with pytest.raises(ShapeError, match="token id 5 of 5 rows"):
        CALLS["embed id"]()
    with pytest.raises(ShapeError, match=r"tensor\.x: 33 bytes where 1 x 32 of Q8_0 needs 34"):
        core.Weight(np.zeros(33, dtype=np.uint8), 3, 1, 32, "tensor.x")


@pytest.mark.parametrize(
    "call",
    [
        lambda: context(ISA).matmul(None, (weight(),), (buf(2, 5),)),  # type: ignore[arg-type]
        lambda: context(ISA).matmul(buf(2, 32), (None,), (buf(2, 5),)),  # type: ignore[arg-type]
        lambda: context(ISA).matmul(buf(2, 32), (weight(),), (None,)),  # type: ignore[arg-type]
        lambda: context(ISA).glu(buf(2, 8), None),  # type: ignore[arg-type]
        lambda: attend(kv=None),
        lambda: attend(step=None),
        lambda: attend(spec=None),
    ],
    ids=["x", "weight", "out", "up", "kv", "step", "spec"],
)
def test_validation_none_is_an_error_and_no_crash(call: Callable[[], object]) -> None:
    with pytest.raises((AttributeError, TypeError)):
        call()


def test_validation_cache_type() -> None:
    with pytest.raises(ConfigError, match="cache type 'q4_0': this backend has f32, f16, q8_0"):
        core.KVStore([((0,), 1)], 1, 8, "q4_0")


def test_validation_closed_cache() -> None:
    kv = store()
    kv.close()
    kv.close()
    with pytest.raises(BackendError, match="the cache is closed"):
        attend(kv=kv)


def test_validation_no_rows_is_no_work() -> None:
    context(ISA).matmul(buf(0, 32), (weight(),), (buf(0, 5),))


def test_validation_two_threads_in_one_context_is_an_error() -> None:
    """One of them gets through, the other is told."""
    ctx = core.Context(isa=ISA)
    w, x = weight(1000, 256), buf(64, 256)
    errors: list[Exception] = []

    def work() -> None:
        for _ in range(20):
            try:
                ctx.matmul(x, (w,), (buf(64, 1000),))
            except BackendError as error:
                errors.append(error)

    threads = [threading.Thread(target=work) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors
    assert "already in use by another thread" in str(errors[0])
    ctx.matmul(x, (w,), (buf(64, 1000),))  # and it still works
