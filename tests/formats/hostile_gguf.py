"""GGUF rows of the corpus of bad files: the container, up to where each tensor lies."""

from __future__ import annotations

import os
import struct
from collections.abc import Callable, Iterator
from pathlib import Path

from hostile_case import Case, blob
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
    gguf_kv,
    gguf_string,
    random_model,
    raw_gguf,
    small_vocab,
    tiny_config,
)

from rllama.errors import ConfigError, FormatError, UnsupportedError

CFG = tiny_config(ffn_dim=32, n_layers=1, vocab_size=262, tied_head=True)
MODEL = random_model(CFG, 11)
VOCAB = small_vocab(CFG.vocab_size)
MAX64 = 2**64 - 1

Edit = Callable[[RawGguf], object]


def base() -> RawGguf:
    """A correct file, fresh for every case."""
    return raw_gguf(CFG, MODEL, "F32", VOCAB)


GOOD = base().to_bytes()


def edited(
    row: str, variant: str, edit: Edit, error: type[Exception] | None, fragment: str = ""
) -> Case:
    """A case that changes a part of the correct file before it is laid out."""

    def data() -> bytes:
        raw = base()
        edit(raw)
        return raw.to_bytes()

    return blob(row, variant, data, error, fragment)


def patched(row: str, variant: str, at: int, new: bytes, error: type[Exception], text: str) -> Case:
    """A case that overwrites bytes of the correct file."""
    return blob(row, variant, lambda: GOOD[:at] + new + GOOD[at + len(new) :], error, text)


def with_key(key: str, kind: int, value: object) -> Edit:
    return lambda raw: raw.kvs.__setitem__(key, (kind, value))


def without(*keys: str) -> Edit:
    return lambda raw: [raw.kvs.pop(key) for key in keys]


def raw_kv(data: bytes) -> Edit:
    return lambda raw: raw.extra_kvs.append(data)


def cases() -> list[Case]:
    """All GGUF cases."""
    parts = (
        _beginning, _counts, _keys, _values, _arrays, _alignment, _tensor_records, _ranges, _types,
        _tails,
    )  # fmt: skip
    return [case for part in parts for case in part()]


def _u64(value: int) -> bytes:
    return struct.pack("<Q", value % 2**64)


def _beginning() -> Iterator[Case]:
    yield blob("G1", "empty", lambda: b"", FormatError, "the file is empty")
    for n in (1, 2, 3):
        yield blob("G1", f"{n}_bytes", lambda n=n: b"GGUF"[:n], FormatError, "no known model file")
    yield blob("G1", "magic_only", lambda: b"GGUF", FormatError, "truncated")
    for n in (7, 8, 15, 16, 23, 24):
        yield blob("G1", f"first_{n}", lambda n=n: GOOD[:n], FormatError, "truncated|hold at most")
    yield patched("G2", "wrong_magic", 0, b"GGUX", FormatError, "no known model file")
    for magic in (b"tjgg", b"lmgg", b"fmgg", b"algg", b"ggml", b"ggjt"):
        name = magic.decode()
        yield patched("G2", f"legacy_{name}", 0, magic, FormatError, "an old llama.cpp file")
    for version in (0, 1, 4, 2**32 - 1, 2**31):
        want = "version .* is not supported|big-endian"
        yield edited(
            "G3",
            f"version_{version}",
            lambda raw, v=version: setattr(raw, "version", v),
            UnsupportedError,
            want,
        )
    for version in (2, 3):
        yield patched(
            "G3",
            f"swapped_{version}",
            4,
            struct.pack(">I", version),
            UnsupportedError,
            "big-endian",
        )


def _counts() -> Iterator[Case]:
    one_too_many = (len(GOOD) - 16) // 33 + 1
    for value in (-1, 2**63, 2**32, one_too_many):
        yield patched("G4", f"n_tensors_{value}", 8, _u64(value), FormatError, "tensor count")
    one_too_many = (len(GOOD) - 24) // 14 + 1
    for value in (-1, 2**63, 2**32, one_too_many):
        yield patched("G5", f"n_keys_{value}", 16, _u64(value), FormatError, "key count")
    yield blob("G6", "nothing", lambda: RawGguf().to_bytes(), FormatError, "no architecture")
    yield edited(
        "G4",
        "one_too_few_keys",
        lambda raw: setattr(raw, "n_kvs", len(raw.kvs) - 1),
        FormatError,
        "",
    )
    yield edited(
        "G4",
        "one_tensor_more_than_records",
        lambda raw: setattr(raw, "n_tensors", len(raw.tensors) + 1),
        FormatError,
        "",
    )


def _keys() -> Iterator[Case]:
    rest = len(GOOD) - 32
    for length in (MAX64, 2**63, rest + 1, 65536):
        yield patched("G7", f"length_{length}", 24, _u64(length), FormatError, "a string of|beyond")
    value = struct.pack("<I", U32) + bytes(4)
    yield edited("G7", "empty", raw_kv(gguf_string("") + value), FormatError, "empty")
    yield edited(
        "G7", "64KiB", raw_kv(gguf_string("k" * 65536) + value), FormatError, "a string of"
    )
    yield edited("G8", "not_utf8", raw_kv(gguf_string(b"a\xff") + value), FormatError, "utf-8")
    for name, text in (("nul", "a\0b"), ("newline", "a\nb"), ("escape", "a\x1b[31mb")):
        yield edited(
            "G8",
            name,
            raw_kv(gguf_string(text) + value),
            FormatError,
            r"control characters: 'a\\[nx]",
        )


def _values() -> Iterator[Case]:
    for kind in (13, 255, 2**32 - 1):
        yield edited(
            "G9",
            f"type_{kind}",
            raw_kv(gguf_string("x") + struct.pack("<I", kind)),
            FormatError,
            f"type {kind}, which does not exist",
        )
    for length in (MAX64, 2**63, 2**30):
        data = gguf_string("x") + struct.pack("<IQ", STRING, length)
        yield edited("G10", f"string_{length}", raw_kv(data), FormatError, "a string of")
    small = RawGguf(extra_kvs=[gguf_string("x") + struct.pack("<IQ", STRING, 9) + b"12345678"])
    yield blob("G10", "one_past_the_end", small.to_bytes, FormatError, "a string of 9 bytes")
    yield edited("G14", "two", raw_kv(gguf_kv("x", BOOL, 2)), FormatError, "the bool 2")
    yield edited("G14", "255", raw_kv(gguf_kv("x", BOOL, 255)), FormatError, "the bool 255")
    yield edited(
        "G14",
        "in_array",
        raw_kv(gguf_kv("x", ARRAY, (BOOL, [0, 1, 2]))),
        FormatError,
        "a bool other than",
    )
    twin = "llama.block_count"
    yield edited("G15", "same_type", raw_kv(gguf_kv(twin, U32, 1)), FormatError, "occurs twice")
    yield edited("G15", "other_type", raw_kv(gguf_kv(twin, STRING, "1")), FormatError, "twice")
    yield edited(
        "G51",
        "template_u32",
        with_key("tokenizer.chat_template", U32, 1),
        ConfigError,
        "no named chat template",
    )
    yield edited(
        "G51", "template_not_utf8", with_key("tokenizer.chat_template", STRING, b"\xff"), None
    )
    yield edited(
        "G51", "template_2MB", with_key("tokenizer.chat_template", STRING, "x" * 2**21), None
    )


def _arrays() -> Iterator[Case]:
    def head(kind: int, count: int) -> bytes:
        return gguf_string("x") + struct.pack("<IIQ", ARRAY, kind, count)

    for kind, count in ((U8, MAX64), (U32, 2**62 + 1), (U64, 2**61), (F64, 2**61 + 1), (U8, 2**40)):
        yield edited("G11", f"type{kind}_{count}", raw_kv(head(kind, count)), FormatError, "beyond")
    for kind in (13, 255):
        yield edited(
            "G11", f"element_type_{kind}", raw_kv(head(kind, 1)), FormatError, "does not exist"
        )
    for depth in (2, 100, 100_000):
        nested = head(ARRAY, 1) + struct.pack("<IQ", ARRAY, 1) * depth
        yield edited("G12", f"depth_{depth}", raw_kv(nested), UnsupportedError, "arrays of arrays")
    for count in (2**30, 2**61, MAX64):
        yield edited(
            "G13",
            f"strings_{count}",
            raw_kv(head(STRING, count) + bytes(8)),
            FormatError,
            "cannot fit",
        )
    long = head(STRING, 3) + gguf_string("a") + struct.pack("<Q", MAX64 - 20)
    yield edited("G13", "string_length_wraps", raw_kv(long), FormatError, "beyond")


def _alignment() -> Iterator[Case]:
    key = "general.alignment"
    for value in (0, 3, 31, 48, 2**30, 2**31, 2**17):
        row = "G17" if value > 65536 else "G16"
        yield edited(row, str(value), with_key(key, U32, value), FormatError, "power of two")
    for kind, value in ((STRING, "32"), (I32, 32), (I64, 32), (F32, 32.0), (U64, 32)):
        yield edited(
            "G18", f"type{kind}", with_key(key, kind, value), FormatError, "u32 is required"
        )


def set_tensor(index: int, **changes: object) -> Edit:
    def edit(raw: RawGguf) -> None:
        for name, value in changes.items():
            setattr(raw.tensors[index], name, value)

    return edit


def _tensor_records() -> Iterator[Case]:
    for variant, name in (
        ("empty", b""),
        ("256_bytes", b"n" * 256),
        ("nul", b"a\0b"),
        ("newline", b"a\nb"),
        ("not_utf8", b"\xc3\x28"),
    ):
        yield edited("G19", variant, set_tensor(1, name=name), FormatError, "name of tensor 1")
    twin = base().tensors[1].name
    yield edited("G20", "twin", set_tensor(2, name=twin), FormatError, "occurs twice")
    yield edited("G20", "twin_after_nul", set_tensor(2, name=f"{twin}\0x"), FormatError, "control")
    for n_dims in (0, 5, 2**32 - 1):
        yield edited(
            "G21", str(n_dims), set_tensor(1, n_dims=n_dims), FormatError, f"{n_dims} dimensions"
        )
    yield edited("G22", "zero", set_tensor(0, dims=(0, 262)), ConfigError, "shape")
    yield edited("G22", "zero_rows", set_tensor(0, dims=(32, 0)), ConfigError, "shape")
    for dims in ((MAX64, 2), (2**63, 1), (2**63, 2), (32, 2**63)):
        yield edited(
            "G22", f"{dims[0]}x{dims[1]}", set_tensor(0, dims=dims), FormatError, "impossible"
        )
    for dims in ((2**32, 2**32), (2**42 + 1, 2**22), (2**31, 2**31, 4), (2**16,) * 4):
        yield edited(
            "G23", "x".join(map(str, dims)), set_tensor(0, dims=dims), FormatError, "impossible"
        )
    yield edited(
        "G23", "large_but_not_wrapping", set_tensor(0, dims=(2**30, 2**20)), FormatError, "beyond"
    )


def _ranges() -> Iterator[Case]:
    yield edited("G24", "padding_wraps", set_tensor(0, dims=(2**62 - 1,)), FormatError, "beyond")
    yield edited(
        "G24", "padding_wraps_1d", set_tensor(-1, dims=(2**62 - 8,)), FormatError, "beyond"
    )

    def huge(raw: RawGguf) -> None:
        for tensor in raw.tensors:
            tensor.dims = (2**60,)

    yield edited("G25", "sum_wraps", huge, FormatError, "beyond")
    raw = base()
    sizes = [-(-len(tensor.data) // 32) * 32 for tensor in raw.tensors]
    yield edited(
        "G28", "not_aligned", set_tensor(1, offset=sizes[0] + 1), FormatError, "no multiple"
    )
    yield edited("G28", "decreasing", set_tensor(2, offset=0), FormatError, "before the end")
    yield edited("G28", "equal", set_tensor(1, offset=0), FormatError, "before the end")
    yield edited(
        "G28", "overlap", set_tensor(1, offset=sizes[0] - 32), FormatError, "before the end"
    )
    for offset in (MAX64 - 49, 2**64 - 32, 2**63, 2**63 - 32):
        yield edited(
            "G29", str(offset), set_tensor(-1, offset=offset), FormatError, "no multiple|beyond"
        )
    yield blob("G30", "one_byte_short", lambda: GOOD[:-1], FormatError, "beyond")
    yield edited(
        "G30", "one_value_more", set_tensor(-1, dims=(CFG.dim + 1,)), FormatError, "beyond"
    )
    for part in range(1, 64):
        yield blob(
            "G30",
            f"cut_{part}_of_64",
            lambda p=part: GOOD[: len(GOOD) * p // 64],
            FormatError,
            "truncated|a string of|hold at most|cannot fit|beyond",
        )


def _types() -> Iterator[Case]:
    yield edited(
        "G26",
        "33_values_of_q8_0",
        set_tensor(0, dims=(33, 262), type_id=8),
        FormatError,
        "32-value blocks",
    )
    yield edited(
        "G26",
        "16_values_of_q4_0",
        set_tensor(0, dims=(16, 524), type_id=2),
        FormatError,
        "32-value",
    )
    for type_id in (4, 5, 9, 15, 24, 28, 31, 38, 40, 41, 99, 2**31, 2**32 - 1):
        yield edited(
            "G27",
            str(type_id),
            set_tensor(1, type_id=type_id),
            UnsupportedError,
            rf"blk\.0\.attn_norm\.weight.*type {type_id} ",
        )


def _tails() -> Iterator[Case]:
    def sparse(folder: Path) -> Path:
        path = folder / "model"
        path.write_bytes(GOOD)
        os.truncate(path, len(GOOD) + 2**30)
        return path

    yield Case("G31", "1GiB_of_nothing", sparse, None)
    yield edited(
        "G31", "zip_behind", lambda raw: setattr(raw, "tail", b"PK\x05\x06" + bytes(500)), None
    )
