"""safetensors rows of the corpus of bad files: indexes, shards and what a model needs."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path

from hostile_case import Case
from hostile_safetensors import CFG, ENTRIES, FIRST, GOOD, HEADER, MODEL, place_weights, weights
from writers import safetensors_bytes, write_hf

from rllama.errors import ConfigError, FormatError, UnsafeFileError, UnsupportedError

SHARDS = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")
INDEX_NAME = "model.safetensors.index.json"


def place_index(folder: Path, data: bytes) -> Path:
    """A folder with two correct shards and this index."""
    write_hf(folder, CFG, MODEL, n_shards=2)
    (folder / INDEX_NAME).write_bytes(data)
    return folder


def _good_index() -> bytes:
    names = list(ENTRIES)
    half = len(names) // 2
    weight_map = {name: SHARDS[i >= half] for i, name in enumerate(names)}
    return json.dumps({"metadata": {}, "weight_map": weight_map}).encode()


GOOD_INDEX = _good_index()


def cases() -> list[Case]:
    """All cases about folders."""
    return [*_index(), *_folders()]


def index(
    row: str,
    variant: str,
    edit: Callable[[dict[str, str]], object],
    error: type[Exception] | None,
    fragment: str = "",
) -> Case:
    """A case that changes the weight map of a correct index."""

    def make(folder: Path) -> Path:
        raw = json.loads(GOOD_INDEX)
        edit(raw["weight_map"])
        return place_index(folder, json.dumps(raw).encode())

    return Case(row, variant, make, error, fragment)


def _index() -> Iterator[Case]:
    for name, value in (
        ("parent", "../x.safetensors"),
        ("absolute", "/etc/passwd"),
        ("nested", "a/../../x"),
        ("nul", "a\0b"),
        ("backslash", "..\\x"),
        ("drive", "C:x"),
        ("dots", ".."),
        ("dot", "."),
        ("empty", ""),
        ("folder", "sub/x.safetensors"),
    ):
        yield index(
            "S17",
            name,
            lambda m, v=value: m.__setitem__(FIRST, v),
            UnsafeFileError,
            "only plain file names",
        )
    yield Case("S17", "link_out", _link_out, UnsafeFileError, "leaves the folder")
    yield Case("S17", "download_cache", _download_cache, None)
    yield index(
        "S18",
        "missing_shard",
        lambda m: m.__setitem__(FIRST, "none.safetensors"),
        FormatError,
        "none.safetensors', which is missing",
    )
    yield index(
        "S18",
        "in_the_other_shard",
        lambda m: m.__setitem__(FIRST, SHARDS[1]),
        FormatError,
        "is not in model-00002",
    )
    yield index(
        "S18",
        "unknown_tensor",
        lambda m: m.__setitem__("ghost", SHARDS[0]),
        FormatError,
        "'ghost' is not in",
    )
    yield Case("S18", "in_two_shards", _two_homes, FormatError, "is also in")
    for name, value in (("number", 7), ("null", None), ("list", [])):
        yield index(
            "S18",
            f"file_name_{name}",
            lambda m, v=value: m.__setitem__(FIRST, v),
            FormatError,
            "no file name",
        )
    for name, raw in (
        ("empty", b""),
        ("list", b"[]"),
        ("no_map", b"{}"),
        ("map_list", b'{"weight_map": []}'),
        ("map_empty", b'{"weight_map": {}}'),
        ("bom", b"\xef\xbb\xbf{}"),
        ("twin", b'{"weight_map": {"a": "b", "a": "c"}}'),
    ):
        yield Case(
            "S18",
            f"index_{name}",
            lambda f, r=raw: place_index(f, r),
            FormatError,
            "JSON|weight_map",
        )
    for name, metadata in (
        ("wrong", {"total_size": 5}),
        ("list", {"total_size": []}),
        ("odd", [3]),
    ):
        index_data = json.dumps({**json.loads(GOOD_INDEX), "metadata": metadata}).encode()
        yield Case("S18", f"total_size_{name}", lambda f, d=index_data: place_index(f, d), None)
    yield Case("S19", "1GB", _giant_index, FormatError, "more than 67108864 are refused")


def _link_out(folder: Path) -> Path:
    home = folder / "model"
    place_index(_new(home), GOOD_INDEX)
    (home / SHARDS[0]).rename(folder / "elsewhere")
    (home / SHARDS[0]).symlink_to("../elsewhere")
    return home


def _download_cache(folder: Path) -> Path:
    home = _new(folder / "snapshots" / "abc")
    place_index(home, GOOD_INDEX)
    (folder / "blobs").mkdir()
    for shard in SHARDS:
        (home / shard).rename(folder / "blobs" / shard[:11])
        (home / shard).symlink_to(f"../../blobs/{shard[:11]}")
    return home


def _new(folder: Path) -> Path:
    folder.mkdir(parents=True)
    return folder


def _two_homes(folder: Path) -> Path:
    place_index(folder, GOOD_INDEX)
    (folder / SHARDS[1]).write_bytes(GOOD)
    return folder


def _giant_index(folder: Path) -> Path:
    place_index(folder, GOOD_INDEX)
    os.truncate(folder / INDEX_NAME, 10**9)
    return folder


def _folders() -> Iterator[Case]:
    yield Case("S20", "single_and_index", _both, ConfigError, "disagree")
    yield Case("S20", "two_indexes", _two_indexes, ConfigError, "several indexes")
    yield Case("S20", "two_indexes_one_of_files", _two_indexes_one_of_files, None)
    yield Case("S20", "consolidated_twin", _consolidated_twin, None)
    yield Case("S20", "two_files", _two_files, ConfigError, "2 safetensors files and no index")
    yield Case("S20", "no_config", _no_config, ConfigError, "config.json")
    names = [name for name in HEADER if "embed" not in name]
    for name in names:
        yield weights(
            "S15", f"without_{name}", lambda n=name: _less(n), ConfigError, f"{name}.*missing"
        )
    yield weights("S15", f"without_{FIRST}", lambda: _less(FIRST), ConfigError, f"{FIRST}.*missing")
    for name, error, text in (
        ("model.layers.0.self_attn.q_proj.bias", ConfigError, "attention_bias is false"),
        ("model.layers.0.mlp.gate_proj.bias", ConfigError, "mlp_bias is false"),
        ("model.layers.0.self_attn.q_norm.weight", UnsupportedError, "is no part of"),
        ("model.layers.0.what_norm.weight", UnsupportedError, "not supported"),
        ("model.norm.bias", UnsupportedError, "biases are not supported"),
        ("vision_tower.blocks.0.norm.weight", None, ""),
    ):
        yield weights("S15", f"with_{name}", lambda n=name: _more(n), error, text)
    yield weights(
        "S15", "with_inv_freq", lambda: _more("model.layers.0.self_attn.rotary_emb.inv_freq"), None
    )
    yield weights(
        "S15",
        "with_layer_1",
        lambda: _more("model.layers.1.mlp.up_proj.weight"),
        ConfigError,
        "layer 1.*1 layers",
    )
    yield weights(
        "S15",
        "transposed",
        _transposed,
        ConfigError,
        r"k_proj.weight.*shape \[32, 16\], not \[16, 32\]",
    )


def _less(name: str) -> bytes:
    return safetensors_bytes({key: value for key, value in ENTRIES.items() if key != name})


def _more(name: str) -> bytes:
    return safetensors_bytes({**ENTRIES, name: ("F32", (2,), bytes(8))})


def _transposed() -> bytes:
    name = "model.layers.0.self_attn.k_proj.weight"
    kind, shape, data = ENTRIES[name]
    return safetensors_bytes({**ENTRIES, name: (kind, shape[::-1], data)})


def _both(folder: Path) -> Path:
    place_index(folder, GOOD_INDEX)
    return place_weights(folder, GOOD)


def _two_indexes(folder: Path) -> Path:
    place_index(folder, GOOD_INDEX)
    (folder / "model.fp16.safetensors.index.json").write_bytes(GOOD_INDEX)
    return folder


def _two_indexes_one_of_files(folder: Path) -> Path:
    place_index(folder, GOOD_INDEX)
    absent = json.dumps({"weight_map": {"model.norm.weight": "elsewhere.safetensors"}})
    (folder / "model.fp16.safetensors.index.json").write_text(absent)
    return folder


def _consolidated_twin(folder: Path) -> Path:
    place_weights(folder, GOOD)
    (folder / "consolidated.safetensors").write_bytes(GOOD)
    return folder


def _two_files(folder: Path) -> Path:
    place_weights(folder, GOOD)
    (folder / "other.safetensors").write_bytes(GOOD)
    return folder


def _no_config(folder: Path) -> Path:
    place_weights(folder, GOOD)
    (folder / "config.json").unlink()
    return folder
