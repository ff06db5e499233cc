"""safetensors rows of the corpus of bad files: one file and its header."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

from hostile_case import Case
from writers import (
    hf_config,
    hf_tensors,
    random_model,
    safetensors_bytes,
    safetensors_raw,
    tiny_config,
)

from rllama.errors import ConfigError, FormatError, UnsupportedError

CFG = tiny_config(ffn_dim=32, n_layers=1, vocab_size=40, rope_style="half", tied_head=True)
MODEL = random_model(CFG, 12)
ENTRIES = {name: ("F32", x.shape, x.tobytes()) for name, x in hf_tensors(CFG, MODEL).items()}
GOOD = safetensors_bytes(ENTRIES)
FIRST = "model.embed_tokens.weight"
_SIZE = int.from_bytes(GOOD[:8], "little")
HEADER: dict[str, dict[str, object]] = json.loads(GOOD[8 : 8 + _SIZE])
DATA = GOOD[8 + _SIZE :]

Header = dict[str, dict[str, object]]


def place_weights(folder: Path, data: bytes) -> Path:
    """A folder with a correct config.json and these weights."""
    (folder / "config.json").write_text(json.dumps(hf_config(CFG)))
    (folder / "model.safetensors").write_bytes(data)
    return folder


def weights(
    row: str, variant: str, data: Callable[[], bytes], error: type[Exception] | None, text: str = ""
) -> Case:
    """A case whose weights file is bad."""
    return Case(row, variant, lambda folder: place_weights(folder, data()), error, text)


def header(
    row: str,
    variant: str,
    edit: Callable[[Header], object],
    error: type[Exception] | None,
    text: str = "",
    data: bytes = DATA,
) -> Case:
    """A case that changes the header."""

    def make() -> bytes:
        changed = json.loads(json.dumps(HEADER))
        edit(changed)
        return safetensors_raw(json.dumps(changed), data)

    return weights(row, variant, make, error, text)


def text(row: str, variant: str, new: str | bytes, error: type[Exception], fragment: str) -> Case:
    """A case whose header is this text."""
    return weights(row, variant, lambda: safetensors_raw(new, DATA), error, fragment)


def field(name: str, value: object, tensor: str = FIRST) -> Callable[[Header], object]:
    return lambda h: h[tensor].__setitem__(name, value)


def cases() -> list[Case]:
    """All safetensors cases."""
    parts = (_lengths, _json, _entries, _shapes, _ranges)
    return [case for part in parts for case in part()]


def _with_length(length: int) -> Callable[[], bytes]:
    return lambda: (length % 2**64).to_bytes(8, "little") + GOOD[8:]


def _lengths() -> Iterator[Case]:
    for n in (0, 1, 7):
        yield weights("S1", f"{n}_bytes", lambda n=n: GOOD[:n], FormatError, "empty|truncated")
    for length in (0, 1):
        yield weights("S1", f"length_{length}", _with_length(length), FormatError, "header length")
    for length in (100_000_001, 2**64 - 1, 2**63, len(GOOD), len(GOOD) - 7, 2**64 - 8, 2**32):
        yield weights("S2", str(length), _with_length(length), FormatError, "header length")
    for name, first in (
        ("space", b" "),
        ("bom", b"\xef\xbb\xbf"),
        ("bracket", b"["),
        ("nul", b"\0"),
    ):
        body = first + json.dumps(HEADER).encode()
        yield text("S3", name, body, FormatError, "does not begin with '{'")


def _json() -> Iterator[Case]:
    good = json.dumps(HEADER)
    yield text("S4", "not_utf8", b'{"\xff":' + good[1:].encode(), FormatError, "utf-8")
    yield text("S4", "surrogate", '{"\\ud800": 1,' + good[1:], FormatError, "surrogates")
    yield text("S4", "nul_in_name", '{"a\\u0000b": 1,' + good[1:], FormatError, "NUL")
    bad = {
        "trailing_comma": good[:-1] + ",}",
        "nan": '{"a": NaN}',
        "infinity": '{"a": -Infinity}',
        "1e400": '{"a": 1e400}',
        "comment": "{/* */}",
        "nesting": '{"a":' + "[" * 100_000,
        "closed_nesting": '{"a":' + "[" * 100_000 + "]" * 100_000 + "}",
        "long_integer": '{"a": ' + "9" * 10_000 + "}",
        "41_digits": '{"a": ' + "9" * 41 + "}",
        "cut": good[:-20],
        "two_values": good + good,
        "single_quotes": "{'a': 1}",
    }
    for name, body in bad.items():
        yield text("S5", name, body, FormatError, "not a legal JSON|nested too deeply")
    yield text("S6", "tensor", '{"a": {}, "a": {}}', FormatError, "'a' occurs twice")
    twin = '{"__metadata__": {}, "__metadata__": {}}'
    yield text("S6", "metadata", twin, FormatError, "'__metadata__' occurs twice")
    twin = '{"a": {"dtype": "F32", "dtype": "F16"}}'
    yield text("S6", "inside_an_entry", twin, FormatError, "'dtype' occurs twice")
    for name, value in (("nested", {"a": {}}), ("number", {"a": 1}), ("list", []), ("null", None)):
        yield header(
            "S7",
            name,
            lambda h, v=value: h.__setitem__("__metadata__", v),
            FormatError,
            "__metadata__",
        )


def _entries() -> Iterator[Case]:
    for value in ("F99", "f32", "float32", ""):
        yield header(
            "S8", value or "empty", field("dtype", value), UnsupportedError, "dtype .* not known"
        )
    for value in (7, None, ["F32"]):
        yield header("S8", f"{value}", field("dtype", value), FormatError, "dtype must be a string")
    for kind, shape in (("I32", [40, 32]), ("U32", [40, 32]), ("F64", [40, 16])):

        def edit(h: Header, kind: str = kind, shape: list[int] = shape) -> None:
            h[FIRST] |= {"dtype": kind, "shape": shape}

        yield header(
            "S8", f"known_{kind}", edit, UnsupportedError, f"dtype '{kind}' is not supported"
        )
    for name in ("dtype", "shape", "data_offsets"):
        yield header("S8", f"without_{name}", lambda h, n=name: h[FIRST].pop(n), FormatError, name)
    for value in (1, "x", None, []):
        yield header(
            "S8",
            f"entry_{value}",
            lambda h, v=value: h.__setitem__(FIRST, v),
            FormatError,
            "an object with dtype",
        )
    yield header(
        "S8", "empty_name", lambda h: h.__setitem__("", h.pop(FIRST)), FormatError, "name is empty"
    )
    yield header(
        "S8",
        "long_name",
        lambda h: h.__setitem__("n" * 2000, h.pop(FIRST)),
        FormatError,
        "longer than",
    )
    yield header(
        "S16",
        "one_nibble",
        lambda h: h.__setitem__("x", {"dtype": "F4", "shape": [3], "data_offsets": [0, 1]}),
        UnsupportedError,
        "whole bytes",
    )


def _shapes() -> Iterator[Case]:
    bad = {
        "negative": [-40, 32],
        "float": [40.0, 32],
        "bool": [True, 1280],
        "string": ["40", 32],
        "null": [None, 32],
        "65_dims": [1] * 64 + [1280],
        "not_a_list": 1280,
        "object": {},
        "nested": [[40, 32]],
        "2pow63": [2**63, 0],
    }
    for name, value in bad.items():
        yield header("S9", name, field("shape", value), FormatError, "shape")
    for name, shape in (("2pow64", [2**32, 2**32]), ("2pow126", [2**62, 2**62, 4])):

        def edit(h: Header, shape: list[int] = shape) -> None:
            h["x"] = {"dtype": "F32", "shape": shape, "data_offsets": [len(DATA), len(DATA)]}

        yield header("S10", name, edit, FormatError, "data_offsets give 0")
    yield header("S11", "bigger", field("shape", [41, 32]), FormatError, "needs 5248 bytes")
    yield header("S11", "smaller", field("shape", [39, 32]), FormatError, "needs 4992 bytes")
    yield header("S11", "other_dtype", field("dtype", "F16"), FormatError, "needs 2560 bytes")

    def empty(h: Header) -> None:
        h["x"] = {"dtype": "F32", "shape": [0, 7], "data_offsets": [len(DATA), len(DATA)]}
        h["y"] = {"dtype": "I64", "shape": [0], "data_offsets": [0, 0]}

    yield header("S15", "unused_and_empty", empty, None)
    scalar = {"dtype": "F32", "shape": [], "data_offsets": [len(DATA), len(DATA) + 4]}
    yield header(
        "S15", "unused_scalar", lambda h: h.__setitem__("x", scalar), None, data=DATA + b"1234"
    )

    def zero(h: Header) -> None:
        del h["model.norm.weight"]
        h["model.norm.weight"] = {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}

    last = int(HEADER["model.norm.weight"]["data_offsets"][0])  # type: ignore[index]
    yield header(
        "S15", "needed_and_empty", zero, ConfigError, "model.norm.weight.*shape", DATA[:last]
    )


def _ranges() -> Iterator[Case]:
    bad = {
        "one": [0],
        "three": [0, 1, 2],
        "reversed": [5120, 0],
        "negative": [-5120, 0],
        "bool": [False, 5120],
        "float": [0.0, 5120.0],
        "string": "0",
        "null": None,
    }
    for name, value in bad.items():
        yield header("S12", name, field("data_offsets", value), FormatError, "data_offsets")
    end = len(DATA)
    for name, offsets in (
        ("beyond", [end, end + 5120]),
        ("huge", [2**63, 2**63 + 5120]),
        ("wrapping", [2**64 - 5120, 2**64]),
    ):
        yield header(
            "S12", name, field("data_offsets", offsets), FormatError, "hole|beyond|overlap"
        )
    second = list(HEADER)[1]
    begin, stop = HEADER[second]["data_offsets"]  # type: ignore[misc]
    for name, shift in (("by_1", -1), ("by_4", -4)):
        offsets = [begin + shift, stop + shift]
        yield header(
            "S13", name, field("data_offsets", offsets, second), FormatError, "overlap|hole"
        )
    third = list(HEADER)[4]
    same = HEADER[list(HEADER)[3]]["data_offsets"]
    yield header(
        "S13", "identical", field("data_offsets", same, third), FormatError, "overlap|needs"
    )
    yield weights("S14", "tail", lambda: GOOD + b"x", FormatError, "after the last tensor")
    yield weights(
        "S14", "zip_tail", lambda: GOOD + b"PK\x05\x06" + bytes(18), FormatError, "after the last"
    )
    yield weights("S14", "short", lambda: GOOD[:-1], FormatError, "beyond")
    yield header("S14", "hole_at_the_start", _shift_all, FormatError, "hole", b"1234" + DATA)
    yield header("S14", "hole_inside", lambda h: h.pop(second), FormatError, "hole")


def _shift_all(h: Header) -> None:
    for entry in h.values():
        begin, end = entry["data_offsets"]  # type: ignore[misc]
        entry["data_offsets"] = [begin + 4, end + 4]
