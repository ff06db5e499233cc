"""llama2.c rows of the corpus of bad files: models and tokenizer.bin."""

from __future__ import annotations

import os
import struct
from collections.abc import Callable, Iterator
from pathlib import Path

from hostile_case import Case, blob
from writers import (
    llama2c_bytes,
    llama2c_tokenizer_bytes,
    random_model,
    small_vocab,
    tiny_config,
)

from rllama.errors import ConfigError, FormatError, UnsupportedError

CFG = tiny_config(ffn_dim=32, n_layers=1, vocab_size=262)
MODEL = random_model(CFG, 13)
VOCAB = small_vocab(CFG.vocab_size)
GOOD_TOKENIZER = llama2c_tokenizer_bytes(VOCAB)
NUMBERS = ("dim", "hidden_dim", "n_layers", "n_heads", "n_kv_heads", "vocab_size", "seq_len")
MAGIC = b"24ka"


def good(version: int) -> bytes:
    """A correct file."""
    return llama2c_bytes(CFG, MODEL, version)


def place_tokenizer(folder: Path, data: bytes) -> Path:
    """A correct model with this tokenizer.bin beside it."""
    path = folder / "model"
    path.write_bytes(good(0))
    (folder / "tokenizer.bin").write_bytes(data)
    return path


def cases() -> list[Case]:
    """All llama2.c cases."""
    parts = (_short, _numbers, _sizes, _versions, _tokenizer)
    return [case for part in parts for case in part()]


def put(version: int, at: int, layout: str, value: int) -> Callable[[], bytes]:
    def data() -> bytes:
        out = bytearray(good(version))
        struct.pack_into("<" + layout, out, at, value)
        return bytes(out)

    return data


def _short() -> Iterator[Case]:
    for n in (1, 4, 27, 28, 29, 1000):
        yield blob(
            "L1",
            f"v0_first_{n}",
            lambda n=n: good(0)[:n],
            FormatError,
            "no known model file|would have",
        )
    for version in (1, 2):
        for n in (4, 7, 8, 35, 36, 40, 255, 256, 257):
            yield blob(
                "L1",
                f"v{version}_first_{n}",
                lambda v=version, n=n: good(v)[:n],
                FormatError,
                "truncated",
            )


def _numbers() -> Iterator[Case]:
    for index, name in enumerate(NUMBERS):
        if name == "vocab_size":
            continue
        for value in (0, -1, -(2**31)):
            yield blob(
                "L2",
                f"v0_{name}_{value}",
                put(0, 4 * index, "i", value),
                FormatError,
                "no known model file",
            )
            for version in (1, 2):
                yield blob(
                    "L2",
                    f"v{version}_{name}_{value}",
                    put(version, 8 + 4 * index, "i", value),
                    FormatError,
                    f"{name} at offset {8 + 4 * index} is {value}",
                )
        if name == "seq_len":
            yield blob("L5", "v1_long_context", put(1, 32, "i", 2**31 - 1), None, "")
        elif name != "dim":
            yield blob(
                "L5",
                f"v0_{name}_huge",
                put(0, 4 * index, "i", 2**31 - 1),
                FormatError,
                "no known|would have",
            )
            yield blob(
                "L5",
                f"v1_{name}_huge",
                put(1, 8 + 4 * index, "i", 2**31 - 1),
                ConfigError if "heads" in name or name == "n_layers" else FormatError,
                "multiple|needs a|n_layers",
            )
    for version, at in ((0, 20), (1, 28), (2, 28)):
        for value in (-(2**31), 0):
            yield blob(
                "L3",
                f"v{version}_{value}",
                put(version, at, "i", value),
                FormatError,
                "no known model file" if version == 0 else "vocab_size at offset 28",
            )
    for version in (1, 2):
        yield blob(
            "L2", f"v{version}_negative_vocab", put(version, 28, "i", -262), FormatError, "negative"
        )
    yield blob(
        "L2", "v0_positive_vocab_without_room", put(0, 20, "i", 262), FormatError, "would have"
    )
    for version in (1, 2):
        for name, value in (("n_heads", 5), ("n_kv_heads", 3), ("n_kv_heads", 8)):
            at = 8 + 4 * NUMBERS.index(name)
            yield blob(
                "L4",
                f"v{version}_{name}_{value}",
                put(version, at, "i", value),
                ConfigError,
                "multiple",
            )


def _sizes() -> Iterator[Case]:
    for version in (0, 1, 2):
        for change in (-4, -1, 1, 4, 1000):

            def data(v: int = version, change: int = change) -> bytes:
                return good(v)[:change] if change < 0 else good(v) + bytes(change)

            yield blob("L5", f"v{version}_by_{change}", data, FormatError, "would have|needs a")
    legacy = struct.pack("<7i", 2**30, 2**30, 64, 2**20, 2**20, 2**30, 2**30)
    yield blob("L5", "v0_product_wraps", lambda: legacy.ljust(4096, b"\0"), FormatError, "no known")
    big = struct.pack("<7i", 2**23, 2**23, 4096, 2**20, 2**20, 2**23, 2**23)
    yield blob(
        "L5", "v0_huge_but_plausible", lambda: big.ljust(4096, b"\0"), FormatError, "would have"
    )
    wrapping = MAGIC + struct.pack("<i7iB", 1, 2**30, 2**30, 64, 2**20, 2**20, 2**30, 2**30, 1)
    yield blob(
        "L5", "v1_product_wraps", lambda: wrapping.ljust(4096, b"\0"), FormatError, "needs a"
    )


def _versions() -> Iterator[Case]:
    for version in (0, 3, 4, -1, 2**31 - 1):
        yield blob(
            "L6",
            f"version_{version}",
            put(1, 4, "i", version),
            UnsupportedError,
            f"version {version} at offset 4",
        )
    for group in (0, -1, -(2**31), 3, 24, 64, 2**31 - 1):
        yield blob(
            "L6", f"group_{group}", put(2, 37, "i", group), FormatError, f"group size {group}"
        )
    for group in (1, 16):
        yield blob(
            "L6", f"group_{group}_other_size", put(2, 37, "i", group), FormatError, "needs a"
        )
    for flag in (2, 255):
        yield blob("L6", f"flag_{flag}", put(1, 36, "B", flag), FormatError, "flag at offset 36")
    yield blob("L6", "flag_wrong", put(1, 36, "B", 1), FormatError, "needs a")
    # As version 0, dim would be the magic and the matrices alone 10^19 bytes: no file is that long.
    verdicts: tuple[tuple[int, type[Exception], str], ...] = (
        (172, UnsupportedError, "version 172"),
        (1, ConfigError, "multiple"),
        (2, FormatError, "group size"),
    )
    for hidden, error, text in verdicts:
        numbers = struct.pack("<6i", hidden, 5, 8, 4, 512, 512)
        yield blob(
            "L7",
            f"magic_and_{hidden}",
            lambda n=numbers: (MAGIC + n).ljust(9000, b"\1"),
            error,
            text,
        )


def tokenizer(
    row: str, variant: str, data: bytes, error: type[Exception] | None, text: str
) -> Case:
    return Case(row, variant, lambda folder: place_tokenizer(folder, data), error, text)


def _tokenizer() -> Iterator[Case]:
    rest = GOOD_TOKENIZER[4:]
    for longest in (0, 2**31, 2**32 - 1, 65537):
        yield tokenizer(
            "L8",
            f"longest_{longest}",
            struct.pack("<I", longest) + rest,
            FormatError,
            "longest piece",
        )
    yield tokenizer(
        "L8", "longest_too_short", struct.pack("<I", 4) + rest, FormatError, "impossible"
    )
    for length in (-1, -(2**31), 8, 2**31 - 1):
        data = bytearray(GOOD_TOKENIZER)
        struct.pack_into("<i", data, 8, length)
        yield tokenizer("L8", f"length_{length}", bytes(data), FormatError, "impossible")
    for cut in (1, 5, 9):
        yield tokenizer(
            "L8", f"cut_by_{cut}", GOOD_TOKENIZER[:-cut], FormatError, "cut off|impossible|262"
        )
    yield tokenizer("L8", "empty", b"", FormatError, "too few")
    for n in (261, 263, 280):
        data = llama2c_tokenizer_bytes(small_vocab(n))
        yield tokenizer("L9", f"{n}_of_262", data, FormatError, f"{n} tokens, but .* has 262")
    for score in (float("nan"), float("inf")):
        data = GOOD_TOKENIZER[:4] + struct.pack("<f", score) + GOOD_TOKENIZER[8:]
        yield tokenizer("L10", f"score_{score}", data, FormatError, "score (nan|inf)")
    yield Case("L8", "1GiB", _giant, FormatError, "more than 67108864")


def _giant(folder: Path) -> Path:
    path = place_tokenizer(folder, GOOD_TOKENIZER)
    os.truncate(folder / "tokenizer.bin", 2**30)
    return path
