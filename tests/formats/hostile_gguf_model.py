"""GGUF rows of the corpus of bad files: what keys, vocabulary and tensors say about the model."""

from __future__ import annotations

import struct
from collections.abc import Iterator

from hostile_case import Case
from hostile_gguf import CFG, Edit, base, edited, set_tensor, with_key, without
from writers import (
    ARRAY,
    BOOL,
    F32,
    F64,
    I32,
    I64,
    STRING,
    U8,
    U32,
    U64,
    RawGguf,
    RawTensor,
    small_vocab,
)

from rllama.errors import ConfigError, FormatError, UnsupportedError

MAX64 = 2**64 - 1


def cases() -> list[Case]:
    """All GGUF cases about the model."""
    parts = (_architecture, _sizes, _rope, _vocabulary, _tokens, _missing, _splits)
    return [case for part in parts for case in part()]


def _architecture() -> Iterator[Case]:
    key = "general.architecture"
    yield edited("G32", "missing", without(key), ConfigError, "names no architecture")
    yield edited("G32", "u32", with_key(key, U32, 1), ConfigError, "must be a string")
    for arch in ("gpt2", "mamba", "", "LLAMA", "x" * 2**20, "../llama", "a\x1b[31m"):
        yield edited(
            "G32",
            f"unknown_{ascii(arch)[1:9]}",
            with_key(key, STRING, arch),
            UnsupportedError,
            "architecture .* is not supported",
        )

    def prefix(raw: RawGguf) -> None:
        raw.kvs = {key.replace("llama.", "qwen2."): value for key, value in raw.kvs.items()}

    yield edited(
        "G33",
        "keys_of_another",
        prefix,
        ConfigError,
        r"missing: llama\.embedding_length, llama\.block_count",
    )


def _sizes() -> Iterator[Case]:
    def size(row: str, name: str, *values: object) -> Iterator[Case]:
        for kind, value in values:  # type: ignore[misc]
            yield edited(
                row,
                f"{name}_{kind}_{value}",
                with_key(f"llama.{name}", kind, value),
                ConfigError,
                name.rpartition(".")[2],
            )

    bad = ((U32, 0), (U64, 2**63), (U64, MAX64), (I64, -1), (F32, 4.0), (STRING, "4"), (BOOL, 1))
    yield from size("G34", "attention.head_count", *bad)
    yield from size("G35", "attention.head_count_kv", *bad)
    for value in (3, 8, 5):
        yield edited(
            "G35",
            f"heads_kv_{value}",
            with_key("llama.attention.head_count_kv", U32, value),
            ConfigError,
            "n_kv_heads",
        )

    def no_head_dim(raw: RawGguf) -> None:
        without("llama.attention.key_length", "llama.attention.value_length")(raw)
        raw.kvs["llama.attention.head_count"] = (U32, 5)
        raw.kvs["llama.attention.head_count_kv"] = (U32, 5)

    yield edited("G36", "not_a_multiple", no_head_dim, ConfigError, "no multiple of the 5 heads")
    for count in (0, 2, 64):
        yield edited(
            "G37",
            f"{count}_for_1_layer",
            with_key("llama.feed_forward_length", ARRAY, (U32, [32] * count)),
            ConfigError,
            "1 layers",
        )
    for kind, item in ((F32, 32.0), (STRING, "32")):
        yield edited(
            "G37",
            f"elements_{kind}",
            with_key("llama.feed_forward_length", ARRAY, (kind, [item])),
            ConfigError,
            "whole numbers are wanted",
        )
    yield edited(
        "G37", "one_for_one", with_key("llama.feed_forward_length", ARRAY, (U32, [32])), None
    )
    yield from size("G38", "block_count", *bad, (U32, 2**31), (U32, 4097))
    for value in (2, 513, 4096):
        yield edited(
            "G38",
            f"block_count_{value}",
            with_key("llama.block_count", U32, value),
            ConfigError,
            r"blk\.1\.attn_norm\.weight.*missing",
        )
    yield from size("G43", "context_length", *bad)
    yield from size(
        "G41",
        "attention.layer_norm_rms_epsilon",
        (F32, 0.0),
        (F32, -1.0),
        (F32, float("nan")),
        (F32, float("inf")),
        (F32, 1e30),
        (STRING, "1e-5"),
    )
    yield from size("G52", "embedding_length", *bad)
    yield from size("G52", "feed_forward_length", *bad)
    yield from size("G36", "attention.key_length", *bad, (U32, 7), (U32, 2048))
    for name in ("expert_count", "expert_used_count"):
        yield edited("G42", name, with_key(f"llama.{name}", U32, 8), ConfigError, "of . experts")
    yield from size("G42", "expert_used_count", (U64, 2**31), (I32, -1))


def _rope() -> Iterator[Case]:
    key = "llama.rope.dimension_count"
    for value in (0, 7, 10, 2**31 - 1):
        yield edited("G39", str(value), with_key(key, U32, value), ConfigError, "dimension_count")
    yield edited("G39", "partial", with_key(key, U32, 4), None)
    for value in (0.0, -1.0, float("nan"), float("inf")):
        yield edited(
            "G40",
            f"base_{value}",
            with_key("llama.rope.freq_base", F32, value),
            ConfigError,
            "freq_base",
        )

    def scaling(kind: str, factor: float) -> Edit:
        def edit(raw: RawGguf) -> None:
            raw.kvs["llama.rope.scaling.type"] = (STRING, kind)
            raw.kvs["llama.rope.scaling.factor"] = (F32, factor)

        return edit

    for factor in (0.0, float("nan"), -2.0):
        yield edited("G40", f"factor_{factor}", scaling("linear", factor), ConfigError, "factor")
    for kind in ("linear", "yarn", "none"):
        yield edited("G40", f"scaling_{kind}", scaling(kind, 4.0), None)
    yield edited("G40", "scaling_what", scaling("what", 4.0), UnsupportedError, "what")
    yield edited("G40", "scaling_longrope", scaling("longrope", 4.0), ConfigError, "are missing")
    yield edited("G40", "scale_linear", with_key("llama.rope.scale_linear", F32, 4.0), None)
    for value in (0.0, -4.0, float("inf")):
        edit = with_key("llama.rope.scale_linear", F32, value)
        yield edited("G40", f"scale_linear_{value}", edit, ConfigError, "scale_linear")
    for values in ([1.0, 2.0, 4.0], [1.0, 0.0, 1.0, 1.0], [1.0, float("nan"), 1.0, 1.0]):
        yield edited("G40", f"freqs_{values[1]}", _freqs(values), ConfigError, "rope_freqs")
    yield edited("G40", "freqs", _freqs([1.0, 2.0, 4.0, 8.0]), None)
    yield edited(
        "G40", "no_partner", _freqs([1.0] * 4, "rope_factors_long"), ConfigError, "partner"
    )
    yield edited("G40", "freqs_f16", _freqs([1.0] * 4, type_id=1), FormatError, "F32 is wanted")


def _freqs(values: list[float], name: str = "rope_freqs", type_id: int = 0) -> Edit:
    def edit(raw: RawGguf) -> None:
        data = struct.pack(f"<{len(values)}{'e' if type_id else 'f'}", *values)
        raw.tensors.append(RawTensor(f"{name}.weight", (len(values),), type_id, data))

    return edit


def _resized(**counts: int) -> Edit:
    def edit(raw: RawGguf) -> None:
        for name, count in counts.items():
            key = f"tokenizer.ggml.{name}"
            _, (kind, items) = raw.kvs[key]  # type: ignore[misc]
            raw.kvs[key] = (ARRAY, (kind, (items * 2)[:count]))

    return edit


def _vocabulary() -> Iterator[Case]:
    v = CFG.vocab_size
    yield edited(
        "G44",
        "one_token_more",
        _resized(tokens=v + 1, scores=v + 1, token_type=v + 1),
        ConfigError,
        "263 tokens.*262 rows",
    )
    longer = small_vocab(v + 1)

    def replace(raw: RawGguf) -> None:
        raw.kvs["tokenizer.ggml.tokens"] = (ARRAY, (STRING, longer.pieces))
        raw.kvs["tokenizer.ggml.scores"] = (ARRAY, (F32, longer.scores))
        raw.kvs["tokenizer.ggml.token_type"] = (ARRAY, (I32, longer.types))

    yield edited("G44", "one_new_token_more", replace, ConfigError, "263 tokens.*262 rows")
    yield edited(
        "G44", "one_token_fewer", _resized(tokens=v - 1, scores=v - 1, token_type=v - 1), None
    )
    for name in ("scores", "token_type"):
        for count in (0, 1, v - 1, v + 1):
            yield edited("G45", f"{name}_{count}", _resized(**{name: count}), ConfigError, name)
        yield edited("G45", f"{name}_missing", without(f"tokenizer.ggml.{name}"), ConfigError, name)
        for kind in (U8, F64, I64, BOOL):
            yield edited(
                "G46",
                f"{name}_type_{kind}",
                with_key(f"tokenizer.ggml.{name}", ARRAY, (kind, [0] * v)),
                ConfigError,
                name,
            )
        yield edited(
            "G46", f"{name}_scalar", with_key(f"tokenizer.ggml.{name}", U32, 1), ConfigError, name
        )
    for kind, value in ((STRING, "x"), (U32, 3), (ARRAY, (U32, [1, 2]))):
        yield edited(
            "G46",
            f"tokens_type_{kind}",
            with_key("tokenizer.ggml.tokens", kind, value),
            ConfigError,
            "array of strings",
        )


def _token(
    index: int, *, piece: object = None, score: float | None = None, kind: int | None = None
) -> Edit:
    def edit(raw: RawGguf) -> None:
        for name, value in (("tokens", piece), ("scores", score), ("token_type", kind)):
            if value is not None:
                element, items = raw.kvs[f"tokenizer.ggml.{name}"][1]  # type: ignore[misc]
                items = [*items[:index], value, *items[index + 1 :]]
                raw.kvs[f"tokenizer.ggml.{name}"] = (ARRAY, (element, items))

    return edit


def _tokens() -> Iterator[Case]:
    for piece in ("<0x-1>", "<0xZZ>", "<0x100>", "<0x>", "", "x", "<0x0\u0663>"):
        yield edited(
            "G47",
            f"spelt_{piece!a}",
            _token(10, piece=piece),
            FormatError,
            "token 10 .* spells none",
        )
    yield edited("G47", "duplicate", _token(10, piece="<0x00>"), FormatError, "repeats one")
    yield edited("G47", "missing", _token(10, kind=1), FormatError, "lacks the byte token <0x07>")
    yield edited(
        "G47", "not_utf8", _token(10, piece=b"\xff\xfe"), FormatError, "entry 10 .*not UTF-8"
    )
    for score in (float("nan"), float("inf"), -float("inf")):
        yield edited(
            "K7", f"score_{score}", _token(260, score=score), FormatError, "NaN or infinity"
        )
    for kind in (0, 7, 99, -1):
        yield edited("K6", f"type_{kind}", _token(260, kind=kind), FormatError, "outside 1..6")
    for name in ("bos", "eos", "eot", "eom", "padding", "unknown"):
        for kind, value in (
            (U32, CFG.vocab_size),
            (I32, -1),
            (U32, 2**32 - 1),
            (U64, 2**32),
            (STRING, "1"),
            (F32, 1.0),
            (BOOL, 1),
        ):
            key = f"tokenizer.ggml.{name}_token_id"
            yield edited(
                "G50",
                f"{name}_{kind}_{value}",
                with_key(key, kind, value),
                ConfigError,
                f"{name}_token_id",
            )
    for name in ("add_bos_token", "add_space_prefix"):
        yield edited(
            "G50", f"{name}_u32", with_key(f"tokenizer.ggml.{name}", U32, 1), ConfigError, name
        )


def _missing() -> Iterator[Case]:
    names = [tensor.name for tensor in base().tensors]

    def drop(index: int) -> Edit:
        return lambda raw: raw.tensors.pop(index)

    for index, name in enumerate(names):
        yield edited("G52", f"without_{name}", drop(index), ConfigError, f"{name}.*missing")
    yield edited(
        "G52", "extra_weight", _extra("blk.0.what.weight"), UnsupportedError, "nothing.*knows"
    )
    yield edited("G52", "extra_ignored", _extra("blk.0.attn_rot_embd"), None)
    yield edited(
        "G52", "extra_layer", _extra("blk.1.attn_q.weight"), ConfigError, "layer 1.*1 layers"
    )
    for name in (
        "blk.0.attn_output_norm.weight",
        "blk.0.attn_qkv.bias",
    ):
        yield edited("G52", f"refused_{name}", _extra(name), UnsupportedError, "not supported")
    yield edited(
        "G52",
        "expert_vector",
        _extra("blk.0.ffn_gate_exps.weight"),
        FormatError,
        "stack of experts",
    )
    yield edited(
        "G52",
        "router_alone",
        _extra("blk.0.ffn_gate_inp.weight"),
        UnsupportedError,
        "is no part of",
    )
    yield edited(
        "G52", "other_arch", _extra("blk.0.attn_q_norm.weight"), UnsupportedError, "is no part of"
    )
    yield edited(
        "G52", "misshapen_bias", _bias(8), ConfigError, r"attn_q\.bias.*shape \[8\], not \[32\]"
    )
    yield edited("G52", "bias", _bias(32), None)
    for index, name in enumerate(names):
        dims = base().tensors[index].dims
        if len(dims) == 2 and dims[0] != dims[1]:
            yield edited(
                "G52",
                f"transposed_{name}",
                set_tensor(index, dims=dims[::-1]),
                ConfigError,
                rf"{name}.*has the shape|embedding has \d+ rows",
            )
        yield edited(
            "G52",
            f"flat_{name}",
            set_tensor(index, dims=(dims[0], 1)),
            ConfigError,
            rf"{name}.*has the shape|embedding has \d+ rows",
        )


def _bias(n: int) -> Edit:
    def edit(raw: RawGguf) -> None:
        raw.tensors.append(RawTensor("blk.0.attn_q.bias", (n,), 0, bytes(4 * n)))

    return edit


def _extra(name: str) -> Edit:
    def edit(raw: RawGguf) -> None:
        first = raw.tensors[-1]
        raw.tensors.append(type(first)(name, first.dims, first.type_id, first.data))

    return edit


def _splits() -> Iterator[Case]:
    for count in (2, 3, 65535):
        yield edited(
            "G54",
            f"of_{count}",
            with_key("split.count", U32, count),
            ConfigError,
            f"split.count: one of the {count} files",
        )
    yield edited(
        "G54", "of_2pow31", with_key("split.count", U32, 2**31), ConfigError, "split.count"
    )
    yield edited("G54", "of_1", with_key("split.count", U32, 1), None)
