"""GGUF rows of the corpus of bad files: mixtures of experts that contradict themselves."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

from formats.family_writers import write_family_gguf
from hostile_case import Case
from models.families import FAMILIES, random_family
from writers import F32, I32, STRING, U32, U64, Tensors

from rllama.errors import ConfigError, FormatError

FAMILY = FAMILIES["mixtral"]
MODEL = random_family(FAMILY, 1)
N = FAMILY.config.n_experts
Keys = dict[str, tuple[int, object]]


def cases() -> Iterator[Case]:
    """All cases about mixtures."""
    yield from _counts()
    yield from _tensors()


def write_mixture(path: Path, tensors: Tensors = MODEL, **keys: tuple[int, object]) -> Path:
    """A mixture of experts; keys without the name of the architecture."""
    return write_family_gguf(
        path, FAMILY.config, tensors, arch="llama", interleaved=True, vectors={},
        keys={"rope.dimension_count": (U32, 8), **FAMILY.gguf, **keys},
    )  # fmt: skip


def good() -> bytes:
    """A correct file."""
    with TemporaryDirectory() as folder:
        return write_mixture(Path(folder) / "model").read_bytes()


def keyed(variant: str, fragment: str, **keys: tuple[int, object]) -> Case:
    make: Callable[[Path], Path] = lambda folder: write_mixture(folder / "model", **keys)  # noqa: E731
    return Case("G42", variant, make, ConfigError if fragment else None, fragment)


def _counts() -> Iterator[Case]:
    yield keyed("mixture", "")
    for name, kind, value in (
        ("used", U32, 0), ("used", U32, N + 1), ("used", U64, 2**31), ("used", I32, -1),
        ("used", STRING, "2"), ("used", F32, 2.0), ("", U32, 0), ("", U32, N - 1),
        ("", U32, N + 1), ("", U32, 1025), ("", U64, 2**63), ("", I32, -1), ("", STRING, "5"),
    ):  # fmt: skip
        key = f"expert_{name}_count" if name else "expert_count"
        yield keyed(f"mixture_{key}_{kind}_{value}", "expert|router", **{key: (kind, value)})
    yield keyed("mixture_width", "shape", expert_feed_forward_length=(U32, 32))


def _tensors() -> Iterator[Case]:
    def with_tensors(
        variant: str, edit: Callable[[Tensors], Tensors], error: type[Exception], fragment: str
    ) -> Case:
        return Case(
            "G42", f"mixture_{variant}",
            lambda folder: write_mixture(folder / "model", edit(dict(MODEL))), error, fragment,
        )  # fmt: skip

    router, last = "layers.0.router", f"layers.0.experts.{N - 1}."
    for variant, rows in (("fewer", slice(0, N - 1)), ("transposed", None)):

        def other(tensors: Tensors, rows: slice | None = rows) -> Tensors:
            x = tensors[router]
            return tensors | {router: x.T.copy() if rows is None else x[rows]}

        yield with_tensors(f"router_{variant}", other, ConfigError, "router|ffn_gate_inp")
    yield with_tensors(
        "no_router",
        lambda tensors: {name: x for name, x in tensors.items() if name != router},
        ConfigError,
        "ffn_gate_inp.*missing",
    )
    yield with_tensors(
        "short_stacks",
        lambda tensors: {name: x for name, x in tensors.items() if not name.startswith(last)},
        ConfigError,
        "missing",
    )
    stacks = [name for name in MODEL if name.startswith("layers.0.experts.")]
    yield with_tensors(
        "dense_layer",
        lambda tensors: {name: x for name, x in tensors.items() if name not in stacks},
        ConfigError,
        "missing",
    )

    def wider(tensors: Tensors) -> Tensors:
        gates = [name for name in stacks if name.endswith("w_gate")]
        return tensors | {name: tensors[name][:-1] for name in gates}

    yield with_tensors("narrow_gates", wider, ConfigError, "shape")
    for dims in ((), (1,)):

        def bad(folder: Path, dims: tuple[int, ...] = dims) -> Path:
            flat = lambda tensors: {  # noqa: E731
                "blk.0.ffn_gate_exps.weight": tensors["layers.0.experts.0.w_gate"].reshape(
                    -1, *dims
                )
            }
            return write_family_gguf(
                folder / "model", FAMILY.config, MODEL, arch="llama", interleaved=True,
                vectors={}, keys={"rope.dimension_count": (U32, 8), **FAMILY.gguf}, experts=flat,
            )  # fmt: skip

        yield Case("G42", f"mixture_flat_{len(dims)}", bad, FormatError, "stack of experts")
