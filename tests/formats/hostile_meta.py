"""torch rows of the corpus of bad files: shards of Meta checkpoints, and params.json."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

from hostile_case import Case
from hostile_torch import (
    CFG,
    GOOD,
    MODEL,
    place,
)
from torch_writers import (
    meta_shard,
    params_json,
    torch_bytes,
    write_meta,
)  # fmt: skip

from rllama.errors import (
    ConfigError,
    FormatError,
    UnsupportedError,
)

PARAMS = json.dumps(params_json(CFG)).encode()


def place_params(folder: Path, data: bytes) -> Path:
    """A folder with a correct shard and these bytes as its numbers."""
    place(folder, GOOD)
    (folder / "params.json").write_bytes(data)
    return folder


def cases() -> list[Case]:
    """All cases about shards and their numbers."""
    parts = (_shards, _params, _more_params)
    return [case for part in parts for case in part()]


def sharded(
    row: str, variant: str, edit: Callable[[Path], object], error: type[Exception], words: str
) -> Case:
    """A case that changes files of a correct folder of four shards."""

    def make(folder: Path) -> Path:
        write_meta(folder, CFG, MODEL, "F32", 4)
        edit(folder)
        return folder

    return Case(row, variant, make, error, words)


def _shards() -> Iterator[Case]:
    def rewrite(number: int, n_shards: int, dtype: str = "F32") -> Callable[[Path], object]:
        data = torch_bytes(meta_shard(CFG, MODEL, min(number, n_shards - 1), n_shards), dtype)
        return lambda folder: (folder / f"consolidated.{number:02d}.pth").write_bytes(data)

    for gone in (0, 1, 2):
        name_of = f"consolidated.{gone:02d}.pth"
        yield sharded(
            "P-22",
            f"without_{gone}",
            lambda f, n=name_of: (f / n).unlink(),
            FormatError,
            "is missing",
        )
    last_gone: Callable[[Path], object] = lambda f: (f / "consolidated.03.pth").unlink()  # noqa: E731
    yield sharded("P-22", "without_last", last_gone, FormatError, "seem to be missing")
    yield sharded("P-22", "another_size", rewrite(2, 2), FormatError, "the first shard has")
    yield sharded("P-22", "another_type", rewrite(1, 4, "F16"), FormatError, "the first shard has")
    one_more = torch_bytes({**meta_shard(CFG, MODEL, 1, 4), "x": MODEL["final_norm"]}, "F32")
    yield sharded(
        "P-22",
        "one_tensor_more",
        lambda f: (f / "consolidated.01.pth").write_bytes(one_more),
        FormatError,
        "only in some",
    )
    whole_model = rewrite(0, 1)

    def whole_model_twice(folder: Path) -> None:
        for number in range(4):
            (folder / f"consolidated.{number:02d}.pth").unlink()
        for number in range(2):
            rewrite(0, 1)(folder)
            (folder / "consolidated.00.pth").rename(folder / f"c{number}")
        for number in range(2):
            (folder / f"c{number}").rename(folder / f"consolidated.{number:02d}.pth")

    yield sharded("P-22", "whole_first", whole_model, FormatError, "the first shard has")
    yield sharded("P-22", "whole_twice", whole_model_twice, ConfigError, "has the shape|rows")
    beside_it: Callable[[Path], object] = lambda f: (f / "consolidated.04").mkdir()  # noqa: E731
    yield Case("P-22", "empty_folder_beside", _with(beside_it), None)
    three = torch_bytes(meta_shard(CFG, MODEL, 0, 4), "F32")
    yield sharded(
        "P-22",
        "three_digits",
        lambda f: (f / "consolidated.100.pth").write_bytes(three),
        FormatError,
        "is missing",
    )
    differs = dict(meta_shard(CFG, MODEL, 1, 4))
    differs["layers.0.attention.wk.weight"] = -differs["layers.0.attention.wk.weight"]
    yield sharded(
        "P-22",
        "repeated_heads_differ",
        lambda f: (f / "consolidated.01.pth").write_bytes(torch_bytes(differs, "F32")),
        FormatError,
        "is to repeat the heads",
    )


def _with(edit: Callable[[Path], object]) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        write_meta(folder, CFG, MODEL, "F32", 4)
        edit(folder)
        return folder

    return make


def params(row: str, variant: str, data: bytes, error: type[Exception] | None) -> Case:
    return Case(row, f"params_{variant}", lambda f: place_params(f, data), error, "params|config")


def _params() -> Iterator[Case]:
    for variant, data in (
        ("empty", b""), ("null", b"null"), ("list", b"[]"), ("bom", b"\xef\xbb\xbf" + PARAMS),
        ("utf16", PARAMS.decode().encode("utf-16")), ("deep", b'{"a":' + b"[" * 10**5),
        ("object", b"{}"), ("big", b" " * (2 << 20) + PARAMS), ("twin", PARAMS[:-1] + b',"dim":1}'),
    ):  # fmt: skip
        yield params("C1", variant, data, ConfigError)
    bad = ("0", "-1", '"4096"', "4096.5", "true", "NaN", "1e400", "9" * 5000, "[]", "2147483648")
    for field in ("dim", "n_layers", "n_heads", "n_kv_heads", "multiple_of", "max_seq_len"):
        for value in bad:
            data = changed(field, value)
            yield params("C2", f"{field}_{value[:12]}", data, ConfigError)
    for field in ("dim", "n_layers", "n_heads"):
        yield params("C2", f"{field}_missing", changed(field, "null"), ConfigError)
    for value in ("-1", str(CFG.vocab_size)):
        yield params("C3", f"vocab_{value}", changed("vocab_size", value), None)
    for value in ("-2", "0", str(CFG.vocab_size - 1), '"x"', "true", "1.5"):
        yield params("C3", f"vocab_{value}", changed("vocab_size", value), ConfigError)


def _more_params() -> Iterator[Case]:
    for value in ("NaN", "-1", "0", "1e9", '"1.3"', "true", "[]"):
        yield params("C4", f"multiplier_{value}", changed("ffn_dim_multiplier", value), ConfigError)
    for field, value in (("n_heads", "5"), ("n_heads", "32"), ("n_kv_heads", "3"),
                         ("head_dim", "7"), ("head_dim", "5000")):  # fmt: skip
        yield params("C5", f"{field}_{value}", changed(field, value), ConfigError)
    for field in ("rope_theta", "norm_eps"):
        for value in ("0", "-1", "NaN", '"1"', "true", "1e400"):
            yield params("C6", f"{field}_{value}", changed(field, value), ConfigError)
    yield params("C6", "scaled_number", changed("use_scaled_rope", "1"), ConfigError)
    yield params("C6", "scaled", changed("use_scaled_rope", "true"), None)
    for field, value in (("moe", '{"num_experts": 8}'), ("sliding_window", "4096"),
                         ("lora_args", '{"rank": 16}'), ("quantization_args", '{"x": 1}'),
                         ("vision_chunk_size", "448")):  # fmt: skip
        yield params("C6", field, changed(field, value), UnsupportedError)


def changed(field: str, value: str) -> bytes:
    """params.json with one value replaced by this text."""
    numbers = {key: json.dumps(v) for key, v in params_json(CFG).items()} | {field: value}
    return ("{" + ", ".join(f'"{key}": {v}' for key, v in numbers.items()) + "}").encode()
