"""Numbers of config.json and of GGUF keys that the families' own tests do not reach."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
from formats.family_writers import hf_numbers, write_family_hf
from formats.writers import (
    BOOL,
    F32,
    STRING,
    U32,
    random_model,
    raw_gguf,
    tiny_config,
)

from rllama.config import GenerationDefaults, ModelConfig, RopeScaling
from rllama.errors import ConfigError, UnsupportedError
from rllama.formats import open_checkpoint

CFG = tiny_config()
MODEL = random_model(CFG, 1)


def gguf_config(tmp_path: Path, arch: str = "llama", **keys: tuple[int, object]) -> ModelConfig:
    """What a GGUF with these keys is read as; "__" stands for a dot."""
    raw = raw_gguf(CFG, MODEL)
    raw.kvs = {key.replace("llama.", f"{arch}.", 1): value for key, value in raw.kvs.items()}
    raw.kvs["general.architecture"] = (STRING, arch)
    for key, value in keys.items():
        name = key.replace("__", ".")
        raw.kvs[name if name.startswith("general.") else f"{arch}.{name}"] = value
    (tmp_path / "m").write_bytes(raw.to_bytes())
    return config_of(tmp_path / "m")


def hf_config(tmp_path: Path, dtype: str = "F32", **numbers: object) -> ModelConfig:
    """What a config.json with these numbers is read as."""
    write_family_hf(tmp_path / "hf", hf_numbers(CFG, **numbers), MODEL, dtype=dtype)
    return config_of(tmp_path / "hf")


def config_of(path: Path) -> ModelConfig:
    checkpoint = open_checkpoint(path)
    checkpoint.close()
    assert checkpoint.config is not None
    return checkpoint.config


def test_gguf_sampling_keys_are_the_defaults_of_the_model(tmp_path: Path) -> None:
    config = gguf_config(
        tmp_path, general__sampling__temp=(F32, 0.5), general__sampling__top_k=(U32, 7),
        general__sampling__penalty_repeat=(F32, 1.25), general__sampling__xtc_threshold=(F32, 0.5),
    )  # fmt: skip
    want = GenerationDefaults(temperature=0.5, top_k=7, repetition_penalty=1.25)
    assert config.generation == want


def test_gguf_sampling_key_out_of_range_is_refused_with_the_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"/m: top_p must be a number above 0"):
        gguf_config(tmp_path, general__sampling__top_p=(F32, 1.5))


@pytest.mark.parametrize(("arch", "n_layers"), [("gemma2", 46), ("gemma3", 62)])
def test_gguf_deepest_gemmas_scale_scores_by_the_shared_width(
    tmp_path: Path, arch: str, n_layers: int
) -> None:
    config = gguf_config(tmp_path, arch, block_count=(U32, n_layers))
    assert config.attn_scale == pytest.approx(1 / math.sqrt(CFG.dim // CFG.n_heads))
    assert gguf_config(tmp_path, arch).attn_scale is None


def test_gguf_gemma2_has_windows_without_a_word_and_gemma3_has_not(tmp_path: Path) -> None:
    assert gguf_config(tmp_path, "gemma2", context_length=(U32, 8192)).windows == (4096, 0)
    assert gguf_config(tmp_path, "gemma3").windows == ()
    assert gguf_config(tmp_path, "qwen2", attention__sliding_window=(U32, 8)).windows == ()
    assert gguf_config(tmp_path, "olmo2", attention__sliding_window=(U32, 0)).windows == ()


@pytest.mark.parametrize(
    ("key", "value"),
    [("attention__clamp_kqv", (F32, 8.0)), ("attention__max_alibi_bias", (F32, 8.0)),
     ("attention__causal", (BOOL, False)), ("attention__kv_lora_rank", (U32, 64))],
)  # fmt: skip
def test_gguf_key_that_matters_and_is_not_computed_is_refused(
    tmp_path: Path, key: str, value: tuple[int, object]
) -> None:
    with pytest.raises(UnsupportedError, match=rf"llama\.{key.replace('__', '.')}"):
        gguf_config(tmp_path, **{key: value})


def test_gguf_granite_without_rotation_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedError, match="finetuned"):
        gguf_config(tmp_path, "granite", rope__scaling__finetuned=(BOOL, False))
    assert gguf_config(tmp_path, rope__scaling__finetuned=(BOOL, False))


def test_gguf_yarn_factor_of_the_file_multiplies_that_of_the_kind(tmp_path: Path) -> None:
    scaling = gguf_config(
        tmp_path, rope__scaling__type=(STRING, "yarn"), rope__scaling__factor=(F32, 4.0),
        rope__scaling__original_context_length=(U32, 32), rope__scaling__attn_factor=(F32, 0.5),
    ).rope_scaling  # fmt: skip
    assert scaling is not None
    assert scaling.attn_factor == pytest.approx(0.5 * (1 + 0.1 * math.log(4)))


@pytest.mark.parametrize(
    ("dtype", "want"),
    [("F32", math.sqrt(32)), ("F16", float(np.float16(math.sqrt(32)))), ("BF16", 5.65625)],
)
def test_hf_embedding_scale_is_rounded_to_the_type_of_the_embedding(
    tmp_path: Path, dtype: str, want: float
) -> None:
    config = hf_config(tmp_path, dtype, model_type="gemma2")
    assert config.embed_scale == pytest.approx(want, rel=1e-7)
    assert config.norm_offset == 1.0


_GEMMA3_OLD = {
    "rope_theta": 1000000.0, "rope_local_base_freq": 20000.0,
    "rope_scaling": {"rope_type": "linear", "factor": 8.0}, "sliding_window_pattern": 2,
}  # fmt: skip
_GEMMA3_NEW = {
    "rope_theta": None, "layer_types": ["sliding_attention", "full_attention"],
    "rope_parameters": {
        "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1000000.0},
        "sliding_attention": {"rope_type": "default", "rope_theta": 20000.0},
    },
}  # fmt: skip
_YARN = {"factor": 4.0, "original_max_position_embeddings": 32}


@pytest.mark.parametrize(
    ("model_type", "old", "new"),
    [
        ("gemma3_text", _GEMMA3_OLD, _GEMMA3_NEW),
        ("qwen2", {"rope_theta": 5e5, "rope_scaling": {"type": "yarn", **_YARN}},
         {"rope_theta": None,
          "rope_parameters": {"rope_type": "yarn", "rope_theta": 5e5, **_YARN}}),
        ("phi3", {"partial_rotary_factor": 0.5},
         {"rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.5}}),
        ("smollm3", {"no_rope_layer_interval": 2}, {"no_rope_layers": [1, 0, 1, 1]}),
    ],
)  # fmt: skip
def test_hf_old_and_new_spellings_are_the_same_model(
    tmp_path: Path, model_type: str, old: dict[str, object], new: dict[str, object]
) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    extra = {"model_type": model_type, "sliding_window": 16}
    first = hf_config(tmp_path / "a", **extra, **old)
    assert first == hf_config(tmp_path / "b", **extra, **new)


def test_hf_window_is_nothing_where_its_flag_is_off_and_where_it_is_null(tmp_path: Path) -> None:
    for i, (numbers, want) in enumerate((
        ({"model_type": "qwen2", "sliding_window": 16, "max_window_layers": 0}, ()),
        ({"model_type": "qwen2", "sliding_window": 16, "max_window_layers": 1,
          "use_sliding_window": True}, (0, 16)),
        ({"model_type": "llama", "sliding_window": 16}, ()),
        ({"model_type": "mistral", "sliding_window": None}, ()),
        ({"model_type": "mistral", "max_position_embeddings": 8192}, (4096, 4096)),
        ({"model_type": "mistral", "sliding_window": CFG.max_seq_len}, ()),
    )):  # fmt: skip
        (tmp_path / str(i)).mkdir()
        assert hf_config(tmp_path / str(i), **numbers).windows == want


def test_hf_sparse_config_of_gemma3_is_filled(tmp_path: Path) -> None:
    """As published: the text part names only what differs from transformers' class."""
    numbers = {
        "model_type": "gemma3", "architectures": ["Gemma3ForConditionalGeneration"],
        "text_config": {
            "model_type": "gemma3_text", "hidden_size": 32, "intermediate_size": 64,
            "num_hidden_layers": 7, "sliding_window": 1024, "vocab_size": CFG.vocab_size,
            "rope_scaling": {"factor": 8.0, "rope_type": "linear"},
        },
    }  # fmt: skip
    tied = {name: x for name, x in MODEL.items() if name != "lm_head"}
    config = config_of(write_family_hf(tmp_path / "hf", numbers, tied))
    assert (config.n_heads, config.n_kv_heads, config.head_dim) == (8, 4, 256)
    assert config.windows == (1024,) * 5 + (0, 1024)
    assert (config.rope_theta, config.local_rope_theta) == (1e6, 1e4)
    assert config.rope_scaling == RopeScaling("linear", 8.0)
    assert (config.attn_scale, config.norm_eps) == (1 / 16, 1e-6)
    assert (config.activation, config.max_seq_len) == ("gelu_tanh", 131072)


def test_hf_context_of_yarn_reaches_as_far_as_its_factor(tmp_path: Path) -> None:
    numbers = {"max_position_embeddings": 32, "rope_scaling": {"type": "yarn", **_YARN}}
    assert hf_config(tmp_path, **numbers).max_seq_len == 128


def test_hf_early_name_of_the_context_counts(tmp_path: Path) -> None:
    numbers = hf_numbers(CFG, max_sequence_length=2048)
    del numbers["max_position_embeddings"]
    folder = write_family_hf(tmp_path / "hf", numbers, MODEL)
    assert config_of(folder).max_seq_len == 2048
    (folder / "config.json").write_text(json.dumps({**numbers, "max_position_embeddings": 512}))
    assert config_of(folder).max_seq_len == 2048


def test_hf_scaled_rotation_of_narrow_layers_is_refused(tmp_path: Path) -> None:
    ropes = {"full_attention": {"rope_type": "default"},
             "sliding_attention": {"rope_type": "linear", "factor": 2.0}}  # fmt: skip
    with pytest.raises(UnsupportedError, match=r"sliding_attention: a scaled or partial"):
        hf_config(tmp_path, model_type="gemma3_text", rope_parameters=ropes)
