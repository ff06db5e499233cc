"""config.json and generation_config.json rows of the corpus of bad files."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

from hostile_case import Case
from hostile_safetensors import CFG, ENTRIES, MODEL, place_weights
from hostile_safetensors import GOOD as GOOD_WEIGHTS
from writers import hf_config, safetensors_bytes

from rllama.errors import ConfigError, UnsupportedError

NUMBERS = hf_config(CFG)
GOOD = json.dumps(NUMBERS).encode()
_SIZES = (
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "vocab_size",
    "max_position_embeddings",
    "head_dim",
)
_NOT_SIZES = {
    "zero": "0",
    "negative": "-1",
    "string": '"4096"',
    "fraction": "4096.5",
    "bool": "true",
    "nan": "NaN",
    "1e400": "1e400",
    "5000_digits": "9" * 5000,
    "list": "[1]",
    "object": "{}",
    "whole_float": "4.0",
    "2pow31": "2147483648",
}
_OPTIONAL = ("num_key_value_heads", "head_dim")


def place_config(folder: Path, data: bytes) -> Path:
    """A folder with correct weights and this config.json."""
    place_weights(folder, GOOD_WEIGHTS)
    (folder / "config.json").write_bytes(data)
    return folder


def raw(row: str, variant: str, data: bytes, error: type[Exception] | None, text: str = "") -> Case:
    return Case(row, variant, lambda folder: place_config(folder, data), error, text)


def spelt(
    row: str, key: str, variant: str, value: str, error: type[Exception] | None, text: str
) -> Case:
    """A case whose field has a value spelt exactly so."""
    numbers = {**NUMBERS, key: "@"}
    return raw(
        row, f"{key}_{variant}", json.dumps(numbers).replace('"@"', value).encode(), error, text
    )


def changed(
    row: str, variant: str, error: type[Exception] | None, text: str = "", **values: object
) -> Case:
    return raw(row, variant, json.dumps({**NUMBERS, **values}).encode(), error, text)


def cases() -> list[Case]:
    """All config cases."""
    parts = (_texts, _sizes, _heads, _rope, _heads_tied, _ids, _kinds, _generation)
    return [case for part in parts for case in part()]


def _texts() -> Iterator[Case]:
    good = GOOD.decode()
    bad = {
        "empty": b"",
        "null": b"null",
        "list": b"[]",
        "string": b'"x"',
        "bom": b"\xef\xbb\xbf" + GOOD,
        "utf16": good.encode("utf-16"),
        "nesting": b'{"a":' + b"[" * 100_000,
        "cut": GOOD[:-5],
        "twin": GOOD[:-1] + b', "vocab_size": 5}',
        "nul": GOOD + b"\0",
    }
    for name, data in bad.items():
        yield raw("C1", name, data, ConfigError, "JSON|nested")
    yield Case("C1", "1GB", _giant, ConfigError, "refused here")
    yield Case("C1", "folder", _folder, ConfigError, "config.json")


def _giant(folder: Path) -> Path:
    place_config(folder, GOOD)
    os.truncate(folder / "config.json", 10**9)
    return folder


def _folder(folder: Path) -> Path:
    place_config(folder, GOOD)
    (folder / "config.json").unlink()
    (folder / "config.json").mkdir()
    return folder


def _sizes() -> Iterator[Case]:
    for key in _SIZES:
        for variant, value in _NOT_SIZES.items():
            text = (
                "NaN|out of range|digits" if value in ("NaN", "1e400") or len(value) > 99 else key
            )
            yield spelt("C2", key, variant, value, ConfigError, text)
        if key not in _OPTIONAL:
            yield spelt("C2", key, "null", "null", ConfigError, f"{key} is missing")
            less = {name: value for name, value in NUMBERS.items() if name != key}
            yield raw(
                "C2", f"{key}_missing", json.dumps(less).encode(), ConfigError, f"{key} is missing"
            )
    for value in ("0", "-1", '"x"', "true", "1", "2e9"):
        yield spelt("C2", "rms_norm_eps", value.strip('"'), value, ConfigError, "rms_norm_eps")
    yield spelt("C2", "rms_norm_eps", "nan", "NaN", ConfigError, "NaN")
    yield changed(
        "C7", "context_10pow12", ConfigError, "max_position", max_position_embeddings=10**12
    )
    yield changed("C7", "context_2pow30", None, max_position_embeddings=2**30)


def _heads() -> Iterator[Case]:
    yield changed(
        "C5",
        "no_multiple",
        ConfigError,
        "no multiple of the 5 heads",
        head_dim=None,
        num_attention_heads=5,
        num_key_value_heads=5,
    )
    yield changed("C5", "odd_head_dim", ConfigError, "head_dim is 7", head_dim=7)
    yield changed("C5", "large_head_dim", ConfigError, "head_dim", head_dim=2048)
    for value in (3, 8):
        yield changed("C5", f"kv_{value}", ConfigError, "n_kv_heads", num_key_value_heads=value)
    yield changed(
        "C5",
        "kv_null_means_heads",
        ConfigError,
        r"k_proj.*shape \[16, 32\], not \[32, 32\]",
        num_key_value_heads=None,
    )
    yield changed("C5", "other_heads", ConfigError, "q_proj.*shape", head_dim=16)


_PAIRS = CFG.head_dim // 2
_LONG = {"rope_type": "longrope", "short_factor": [1.0] * _PAIRS, "long_factor": [2.0] * _PAIRS,
         "original_max_position_embeddings": 16}  # fmt: skip
_LLAMA3 = {"rope_type": "llama3", "factor": 8, "low_freq_factor": 1, "high_freq_factor": 4,
           "original_max_position_embeddings": 16}  # fmt: skip
_GOOD_ROPES = {"old_name": {"type": "linear", "factor": 2}, "longs": _LONG, "llama3s": _LLAMA3}
_BAD_ROPES = (
    ("short", {**_LONG, "short_factor": [1.0]}, "short_factor must be a list"),
    ("no_list", {**_LONG, "long_factor": 2}, "long_factor must be a list"),
    ("zero", {**_LONG, "long_factor": [0] * _PAIRS}, "long_factor must be a number above 0"),
    ("negative_zero", {**_LONG, "original_max_position_embeddings": -1}, "original_max"),
    ("crossed", {**_LLAMA3, "low_freq_factor": 4}, "not below high_freq_factor"),
    ("kindless", {"factor": 2.0}, "rope_type is missing"),
)  # fmt: skip


def _rope() -> Iterator[Case]:
    for value in ("0", "-1", '"x"', "true", "1e308"):
        yield spelt("C6", "rope_theta", value.strip('"'), value, ConfigError, "rope_theta")
    for key in ("rope_scaling", "rope_parameters"):
        for kind in ("linear", "dynamic", "yarn", "longrope", "llama3", "su"):
            bad = {"rope_type": kind, "factor": 0, "low_freq_factor": 1, "high_freq_factor": 4}
            yield changed("C6", f"{key}_{kind}", ConfigError, "factor must", **{key: bad})
        for name, rope, text in _BAD_ROPES:
            yield changed("C6", f"{key}_{name}", ConfigError, text, **{key: rope})
        for name, rope in _GOOD_ROPES.items():
            yield changed("C6", f"{key}_{name}", None, **{key: rope})
        what = {"rope_type": "what", "factor": 2}
        yield changed("C6", f"{key}_what", UnsupportedError, "what", **{key: what})
        mrope = {"rope_type": "default", "mrope_section": [1, 1, 2]}
        yield changed("C6", f"{key}_mrope", UnsupportedError, "mrope_section", **{key: mrope})
        yield changed("C6", f"{key}_default", None, **{key: {"rope_type": "default"}})
        yield changed("C6", f"{key}_empty", None, **{key: {}})
        for name, value in (
            ("null", {"rope_type": None, "factor": 2}),
            ("number", {"rope_type": 3}),
            ("list", [1]),
            ("text", "linear"),
            ("theta", {"rope_type": "default", "rope_theta": 0}),
        ):
            yield changed("C6", f"{key}_{name}", ConfigError, key, **{key: value})
    yield changed("C6", "partial", None, partial_rotary_factor=0.5)
    for value in (0, -1, 2, 0.01, "x"):
        yield changed(
            "C6", f"partial_{value}", ConfigError, "partial_rotary", partial_rotary_factor=value
        )


def _heads_tied() -> Iterator[Case]:
    for rows in (39, 41):
        yield changed(
            "C8", f"vocab_{rows}", ConfigError, f"vocab_size is {rows}.*40 rows", vocab_size=rows
        )
    yield changed(
        "C8", "untied_without_head", ConfigError, "tie_word_embeddings", tie_word_embeddings=False
    )
    yield changed(
        "C8", "tie_is_a_string", ConfigError, "tie_word_embeddings", tie_word_embeddings="no"
    )
    yield Case("C8", "tied_but_other_head", _other_head, ConfigError, "differs from the embedding")
    yield Case("C8", "tied_but_f16_head", _f16_head, ConfigError, "differs from the embedding")


def _with_head(folder: Path, kind: str, data: bytes) -> Path:
    head = {"lm_head.weight": (kind, (CFG.vocab_size, CFG.dim), data)}
    (folder / "config.json").write_bytes(GOOD)
    (folder / "model.safetensors").write_bytes(safetensors_bytes({**ENTRIES, **head}))
    return folder


def _other_head(folder: Path) -> Path:
    head = MODEL["embed"].copy()
    head[-1, -1] += 1
    return _with_head(folder, "F32", head.tobytes())


def _f16_head(folder: Path) -> Path:
    return _with_head(folder, "F16", MODEL["embed"].astype("<f2").tobytes())


def _ids() -> Iterator[Case]:
    for key in ("bos_token_id", "eos_token_id"):
        for value in (40, -1, 2**32, 1.0, True, "1"):
            yield changed("C9", f"{key}_{value}", ConfigError, key, **{key: value})
    for name, value in (
        ("beyond", [2, 40]),
        ("nested", [[2]]),
        ("1025", [2] * 1025),
        ("null_inside", [None]),
        ("object", {"a": 1}),
    ):
        yield changed("C9", f"list_{name}", ConfigError, "eos_token_id", eos_token_id=value)
    yield changed("C9", "million", ConfigError, "refused here", eos_token_id=[2] * 10**6)
    yield changed("C9", "list", None, eos_token_id=[2, 3])
    yield changed("C9", "none", None, eos_token_id=None, bos_token_id=None)


def _kinds() -> Iterator[Case]:
    yield changed("C10", "auto_map", None, auto_map={"AutoModel": "modeling_evil.Evil"})
    yield changed("C10", "trust_remote_code", None, trust_remote_code=True)
    for name, value in (
        ("unknown", ["EvilForCausalLM"]),
        ("two", ["LlamaForCausalLM"] * 2),
        ("number", 7),
        ("text", "LlamaForCausalLM"),
        ("empty", []),
    ):
        yield changed("C11", name, UnsupportedError, "architectures", architectures=value)
    yield changed("C11", "absent", None, architectures=None)
    for value in ("mamba", "", "gpt2", "x" * 9999):
        yield changed(
            "C11", f"type_{value[:5]}", UnsupportedError, "architecture", model_type=value
        )
    for value in (7, None, ["llama"]):
        yield changed("C11", f"type_{value}", ConfigError, "model_type", model_type=value)
    for key in ("attention_bias", "mlp_bias"):
        yield changed("C11", key, ConfigError, "biases are not there", **{key: True})
    yield changed("C11", "relu", UnsupportedError, "hidden_act", hidden_act="relu")
    for key in ("use_bidirectional_attention", "clip_qkv", "attention_chunk_size"):
        yield changed("C11", key, UnsupportedError, key, **{key: 8})
    for value in ([], ["full_attention"] * 9, "full", [["full_attention"]]):
        error = UnsupportedError if value == [["full_attention"]] else ConfigError
        yield changed("C11", f"layers_{str(value)[:6]}", error, "layer_types", layer_types=value)
    kinds = ["chunked_attention"] * CFG.n_layers
    yield changed("C11", "chunked", UnsupportedError, "chunked_attention", layer_types=kinds)
    yield changed("C12", "text", ConfigError, "quantization_config", quantization_config="x")


def _generation() -> Iterator[Case]:
    bad = {
        "temperature": ("NaN", "-1", '"x"', "true", "1e400"),
        "top_p": ("2", "0", "-0.1", "null1"),
        "top_k": ("-1", "5.5", "true"),
        "repetition_penalty": ("0", "-1"),
        "min_p": ("2",),
        "eos_token_id": ("40", "[41]", '"x"'),
    }
    for key, values in bad.items():
        for value in values:
            data = f'{{"{key}": {value}}}'.encode()
            yield Case(
                "C13",
                f"{key}_{value}",
                lambda f, d=data: _generation_file(f, d),
                ConfigError,
                "generation_config.json",
            )
    for name, data in (("empty", b""), ("list", b"[]"), ("cut", b'{"a":')):
        yield Case(
            "C13", name, lambda f, d=data: _generation_file(f, d), ConfigError, "generation_config"
        )
    huge = b'{"max_new_tokens": 1000000000000, "temperature": null}'
    yield Case("C13", "huge_length_is_ours_to_limit", lambda f: _generation_file(f, huge), None)


def _generation_file(folder: Path, data: bytes) -> Path:
    place_config(folder, GOOD)
    (folder / "generation_config.json").write_bytes(data)
    return folder
