"""GPTQ and AWQ rows of the corpus of bad files."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
from formats.packed_models import (
    CFG,
    Arrays,
    PackedModel,
    awq_model,
    gptq_model,
    packed_bytes,
    write_packed,
)
from hostile_case import Case

from rllama.errors import ConfigError, FormatError, UnsupportedError

SMALL = replace(CFG, dim=64, ffn_dim=64, n_heads=4, n_kv_heads=2, vocab_size=40)
GPTQ = gptq_model(4, 32, cfg=SMALL, act_order=True)
AWQ = awq_model(32, cfg=SMALL)
GOOD = packed_bytes(GPTQ.tensors)
ONE = "model.layers.0.self_attn.k_proj"  # [32, 64]


def place_packed(folder: Path, data: bytes) -> Path:
    """A folder with the settings of a correct GPTQ model and these weights."""
    write_packed(folder, GPTQ)
    (folder / "model.safetensors").write_bytes(data)
    return folder


def cases() -> list[Case]:
    """All cases about packed matrices."""
    return [*_groups(), *_missing(), *_shapes(), *_settings()]


def tensors(
    row: str,
    variant: str,
    edit: Callable[[Arrays], object],
    error: type[Exception] | None,
    text: str = "",
    model: PackedModel = GPTQ,
) -> Case:
    """A case that changes the tensors of a correct model."""

    def make(folder: Path) -> Path:
        changed = dict(model.tensors)
        edit(changed)
        return write_packed(folder, replace(model, tensors=changed))

    return Case(row, variant, make, error, text)


def setting(
    variant: str,
    change: dict[str, object],
    error: type[Exception] | None,
    text: str = "",
    model: PackedModel = GPTQ,
    row: str = "C12",
) -> Case:
    """A case that changes quantization_config; None removes a field."""

    def make(folder: Path) -> Path:
        scheme = {**model.config["quantization_config"], **change}  # type: ignore[dict-item]
        kept = {key: value for key, value in scheme.items() if value is not None}
        return write_packed(folder, model, quantization_config=kept)

    return Case(row, variant, make, error, text)


def _swap(suffix: str, value: Callable[[np.ndarray], np.ndarray]) -> Callable[[Arrays], object]:
    name = f"{ONE}.{suffix}"
    return lambda found: found.__setitem__(name, value(found[name]))


def _poke(suffix: str, number: float) -> Callable[[Arrays], object]:
    def changed(x: np.ndarray) -> np.ndarray:
        out = x.copy()
        out.flat[3] = number
        return out

    return _swap(suffix, changed)


def _groups() -> Iterator[Case]:
    for name, group in (("below", -1), ("beyond", 2), ("far", 2**31 - 1), ("least", -(2**31))):
        yield tensors(
            "Q1", name, _poke("g_idx", group), FormatError, f"input 3 is of group {group}"
        )
    yield tensors(
        "Q1", "short", _swap("g_idx", lambda x: x[:-1]), FormatError, r"g_idx: I32 \[63\]"
    )
    yield tensors("Q1", "long", _swap("g_idx", lambda x: np.append(x, x[:1])), FormatError, "65")
    yield tensors("Q1", "empty", _swap("g_idx", lambda x: x[:0]), FormatError, r"\[0\]")
    yield tensors("Q1", "i64", _swap("g_idx", lambda x: x.astype("<i8")), FormatError, "I64")
    yield tensors("Q1", "matrix", _swap("g_idx", lambda x: x[None]), FormatError, r"\[1, 64\]")
    yield tensors("Q1", "all_in_one", _swap("g_idx", np.zeros_like), None)
    yield tensors(
        "Q1", "alternating", _swap("g_idx", lambda x: np.arange(64, dtype="<i4") % 2), None
    )
    uneven = np.repeat(np.array([0, 1], dtype="<i4"), [33, 31])
    yield tensors("Q1", "uneven_runs_as_bf16", _swap("g_idx", lambda x: uneven), None)


def _missing() -> Iterator[Case]:
    for suffix in ("qweight", "qzeros", "scales"):
        gone = f"{ONE}.{suffix}"
        text = f"k_proj.{suffix} is missing; it lies beside"
        yield tensors("Q2", suffix, lambda t, n=gone: t.pop(n), FormatError, text)
    everything = [f"{ONE}.{suffix}" for suffix in ("qweight", "qzeros", "scales", "g_idx")]
    yield tensors(
        "Q2", "whole_matrix", lambda t: [t.pop(name) for name in everything], ConfigError,
        "k_proj.weight.*missing",
    )  # fmt: skip
    both = np.zeros((32, 64), dtype=np.float16)
    yield tensors("Q2", "floats_too", lambda t: t.__setitem__(f"{ONE}.weight", both), FormatError,
                  "both weight and packed")  # fmt: skip
    yield tensors("Q2", "no_g_idx", lambda t: t.pop(f"{ONE}.g_idx"), None)
    awq_index = np.zeros(64, dtype=np.int32)
    yield tensors("Q2", "awq_with_g_idx", lambda t: t.__setitem__(f"{ONE}.g_idx", awq_index),
                  FormatError, "no place", AWQ)  # fmt: skip


def _shapes() -> Iterator[Case]:
    for model, name in ((GPTQ, "gptq"), (AWQ, "awq")):
        for suffix in ("qzeros", "scales"):
            for axis in (0, 1):
                less = _swap(suffix, lambda x, a=axis: np.delete(x, -1, a))
                yield tensors("Q3", f"{name}_{suffix}_{axis}", less, FormatError, suffix, model)
        for what, change in (
            ("i64", lambda x: x.astype("<i8")),
            ("f32", lambda x: x.view("<f4")),
            ("flat", lambda x: x.reshape(-1)),
            ("empty", lambda x: x[:0]),
        ):
            yield tensors("Q3", f"{name}_qweight_{what}", _swap("qweight", change), FormatError,
                          "qweight", model)  # fmt: skip
        for axis in (0, 1):
            less = _swap("qweight", lambda x, a=axis: np.delete(x, -1, a))
            # One input less of AWQ's still fits the groups, but not the model.
            error = ConfigError if (name, axis) == ("awq", 0) else FormatError
            yield tensors("Q3", f"{name}_qweight_{axis}", less, error, "k_proj", model)
        for what, number in (("nan", np.nan), ("infinite", np.inf)):
            yield tensors("Q3", f"{name}_scale_{what}", _poke("scales", number), FormatError,
                          "a scale is not finite", model)  # fmt: skip
        yield tensors("Q3", f"{name}_scale_zero", _poke("scales", 0.0), None, "", model)
        yield tensors("Q3", f"{name}_scale_negative", _poke("scales", -1.0), None, "", model)
        yield tensors("Q3", f"{name}_scales_i32", _swap("scales", lambda x: x.astype("<i4")),
                      FormatError, "scales: I32", model)  # fmt: skip
    huge = _swap("scales", lambda x: np.full(x.shape, 1e38, dtype="<f4"))
    yield tensors("Q3", "scale_beyond_half_is_held_as_f32", huge, None)


def _settings() -> Iterator[Case]:
    for value in ("gptq_v3", "marlin", "bitblas", ""):
        yield setting(f"format_{value}", {"checkpoint_format": value}, UnsupportedError,
                      "checkpoint_format", row="Q4")  # fmt: skip
    yield setting(
        "format_number", {"checkpoint_format": 2}, ConfigError, "must be a string", row="Q4"
    )
    yield setting("format_v2", {"checkpoint_format": "gptq_v2"}, None, row="Q4")
    for bits in (1, 5, 6, 7, 16, 2**31 - 1):
        yield setting(f"bits_{bits}", {"bits": bits}, UnsupportedError, f"{bits} bits")
    for bits in (0, -4, 4.0, "4", True, 10**30):
        yield setting(f"bits_{bits!r:.9}", {"bits": bits}, ConfigError, "bits must be")
    yield setting("bits_missing", {"bits": None}, ConfigError, "bits is missing")
    for bits in (2, 3, 8):
        yield setting(f"bits_{bits}_of_4", {"bits": bits}, FormatError, "layers.0")
    for size in (-2, 2**31, 32.0, "32", False):
        yield setting(f"group_{size}", {"group_size": size}, ConfigError, "group_size must be")
    yield setting("group_0", {"group_size": 0}, ConfigError, "group_size is 0")
    yield setting("group_missing", {"group_size": None}, ConfigError, "group_size is missing")
    yield setting("group_64_of_32", {"group_size": 64}, FormatError, "qzeros|scales")
    yield setting("sym_string", {"sym": "yes"}, ConfigError, "sym must be true or false")
    yield setting("desc_act_number", {"desc_act": 1}, ConfigError, "desc_act must be")
    yield setting("dynamic", {"dynamic": {"+:x": {"bits": 8}}}, UnsupportedError, "dynamic")
    yield setting("dynamic_list", {"dynamic": [1]}, UnsupportedError, "dynamic")
    yield setting("dynamic_skips", {"dynamic": {"-:.*lm_head": {}}}, None)
    yield setting("marlin", {"is_marlin_format": True}, UnsupportedError, "is_marlin_format")
    for method in ("bitsandbytes", "fp8", "compressed-tensors", "hqq", "aqlm", "eetq", "torchao",
                   "GPTQ", 4, None):  # fmt: skip
        yield setting(f"method_{method}", {"quant_method": method}, UnsupportedError,
                      f"quantised by .*{method}")  # fmt: skip
    yield setting("load_in_4bit", {"quant_method": None, "load_in_4bit": True}, UnsupportedError,
                  "bitsandbytes")  # fmt: skip
    for version in ("gemv", "gemv_fast", "marlin", "exllama"):
        yield setting(f"awq_{version}", {"version": version}, UnsupportedError, version, AWQ)
    yield setting("awq_GEMM", {"version": "GEMM"}, None, "", AWQ)
    yield setting("awq_8_bits", {"bits": 8}, UnsupportedError, "8 bits", AWQ)
    yield setting("awq_without_zeros", {"zero_point": False}, UnsupportedError, "zero_point", AWQ)
    yield setting("awq_backend", {"backend": "llm-awq"}, UnsupportedError, "llm-awq", AWQ)
    yield Case("C12", "no_settings",
               lambda f: write_packed(f, GPTQ, quantization_config=None), ConfigError,
               "packed, but neither config.json")  # fmt: skip
    for name, text in (
        ("list", "[]"),
        ("cut", '{"bits":'),
        ("bits", '{"bits": 5, "group_size": 1}'),
    ):
        error = UnsupportedError if name == "bits" else ConfigError
        yield Case(
            "C12", f"own_file_{name}", lambda f, t=text: _own_file(f, t), error, "quantize_config"
        )


def _own_file(folder: Path, text: str) -> Path:
    write_packed(folder, GPTQ, quantization_config=None)
    (folder / "quantize_config.json").write_text(text)
    return folder
