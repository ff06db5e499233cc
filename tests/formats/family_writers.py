"""Writers of the kin of Llama: the names and numbers that each family has in its files."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
from formats.expert_writers import gguf_experts, hf_experts, without_experts
from formats.writers import (
    F32,
    GGUF_TYPE_IDS,
    STRING,
    RawTensor,
    Tensors,
    raw_gguf,
    safetensors_bytes,
)

from rllama.config import ModelConfig
from rllama.quant import quantize

_GGUF = {
    "embed": "token_embd.weight", "final_norm": "output_norm.weight", "lm_head": "output.weight",
    "attn_norm": "attn_norm.weight", "wq": "attn_q.weight", "wk": "attn_k.weight",
    "wv": "attn_v.weight", "wo": "attn_output.weight", "wqkv": "attn_qkv.weight",
    "bq": "attn_q.bias", "bk": "attn_k.bias", "bv": "attn_v.bias", "bo": "attn_output.bias",
    "q_norm": "attn_q_norm.weight", "k_norm": "attn_k_norm.weight",
    "post_attn_norm": "post_attention_norm.weight", "ffn_norm": "ffn_norm.weight",
    "w_gate": "ffn_gate.weight", "w_up": "ffn_up.weight", "w_down": "ffn_down.weight",
    "w_gate_up": "ffn_up.weight", "b_gate": "ffn_gate.bias", "b_up": "ffn_up.bias",
    "b_down": "ffn_down.bias", "post_ffn_norm": "post_ffw_norm.weight",
    "router": "ffn_gate_inp.weight", "b_router": "ffn_gate_inp.bias",
    "sinks": "attn_sinks.weight",
}  # fmt: skip
_HF = {
    "embed": "model.embed_tokens.weight", "final_norm": "model.norm.weight",
    "lm_head": "lm_head.weight", "attn_norm": "input_layernorm.weight",
    "wq": "self_attn.q_proj.weight", "wk": "self_attn.k_proj.weight",
    "wv": "self_attn.v_proj.weight", "wo": "self_attn.o_proj.weight",
    "wqkv": "self_attn.qkv_proj.weight", "bq": "self_attn.q_proj.bias",
    "bk": "self_attn.k_proj.bias", "bv": "self_attn.v_proj.bias", "bo": "self_attn.o_proj.bias",
    "q_norm": "self_attn.q_norm.weight", "k_norm": "self_attn.k_norm.weight",
    "ffn_norm": "post_attention_layernorm.weight", "w_gate": "mlp.gate_proj.weight",
    "w_up": "mlp.up_proj.weight", "w_down": "mlp.down_proj.weight",
    "w_gate_up": "mlp.gate_up_proj.weight", "b_gate": "mlp.gate_proj.bias",
    "b_up": "mlp.up_proj.bias", "b_down": "mlp.down_proj.bias", "router": "mlp.gate.weight",
    "b_router": "mlp.router.bias", "sinks": "self_attn.sinks",
}  # fmt: skip
# Names that one family has otherwise.
_HF_OTHERWISE = {
    "mixtral": {"router": "block_sparse_moe.gate.weight"},
    "gpt_oss": {"router": "mlp.router.weight"},
    "glm4": {
        "ffn_norm": "post_attention_layernorm.weight",
        "post_attn_norm": "post_self_attn_layernorm.weight",
        "post_ffn_norm": "post_mlp_layernorm.weight",
    },
}
_GGUF_OTHERWISE = {
    arch: {"ffn_norm": "post_attention_norm.weight"} for arch in ("gpt-oss", "seed_oss")
}
_HF_POST_NORMED = {
    **_HF, "post_attn_norm": "post_attention_layernorm.weight",
    "ffn_norm": "pre_feedforward_layernorm.weight",
    "post_ffn_norm": "post_feedforward_layernorm.weight",
}  # fmt: skip


def _named(canonical: str, names: Mapping[str, str], layers: str) -> str:
    before, _, last = canonical.rpartition(".")
    return f"{before.replace('layers', layers)}.{names[last]}" if before else names[last]


def to_interleaved(x: np.ndarray, n_heads: int) -> np.ndarray:
    """Rows of a matrix or a bias from halves (0,d/2)(1,d/2+1)… to pairs (0,1)(2,3)…."""
    return x.reshape(n_heads, 2, len(x) // n_heads // 2, -1).swapaxes(1, 2).reshape(x.shape)


def gguf_weights(cfg: ModelConfig, tensors: Tensors, *, interleaved: bool) -> Tensors:
    """The weights as a converter changes them: pairs of heads, the offset of norms."""
    found = {}
    for name, x in tensors.items():
        short = name.rpartition(".")[2]
        if interleaved and short in ("wq", "bq"):
            x = to_interleaved(x, cfg.n_heads)
        elif interleaved and short in ("wk", "bk"):
            x = to_interleaved(x, cfg.n_kv_heads)
        elif short.endswith("norm"):
            x = x + np.float32(cfg.norm_offset)
        found[name] = x
    return found


def write_family_gguf(
    path: Path,
    cfg: ModelConfig,
    tensors: Tensors,
    *,
    arch: str,
    interleaved: bool,
    keys: Mapping[str, tuple[int, object]],
    vectors: Mapping[str, list[float]],
    kind: str = "F32",
    experts: Callable[[Tensors], Tensors] = gguf_experts,
) -> Path:
    """A GGUF of weights in Hugging Face's form; keys without the name of the architecture."""
    raw = raw_gguf(replace(cfg, arch="llama"), {})
    raw.kvs = {key.replace("llama.", f"{arch}.", 1): value for key, value in raw.kvs.items()}
    raw.kvs["general.architecture"] = (STRING, arch)
    raw.kvs[f"{arch}.rope.freq_base"] = (F32, cfg.rope_theta)
    for key, value in keys.items():
        raw.kvs[key if key.startswith("general.") else f"{arch}.{key}"] = value
    names = _GGUF | _GGUF_OTHERWISE.get(arch, {})
    weights = gguf_weights(cfg, without_experts(tensors), interleaved=interleaved)
    named = {_named(name, names, "blk"): x for name, x in weights.items()}
    for name, x in (named | experts(tensors)).items():
        its = kind if x.ndim > 1 and not name.endswith("bias") else "F32"
        record = name, x.shape[::-1], GGUF_TYPE_IDS[its]
        raw.tensors.append(RawTensor(*record, quantize(its, x).tobytes()))
    for name, values in vectors.items():
        data = np.array(values, dtype="<f4").tobytes()
        raw.tensors.append(RawTensor(name, (len(values),), GGUF_TYPE_IDS["F32"], data))
    path.write_bytes(raw.to_bytes())
    return path


def hf_numbers(cfg: ModelConfig, **numbers: object) -> dict[str, object]:
    """A config.json with the sizes of a model, and what its family says beside them."""
    return {
        "model_type": cfg.arch, "hidden_size": cfg.dim, "intermediate_size": cfg.ffn_dim,
        "num_hidden_layers": cfg.n_layers, "num_attention_heads": cfg.n_heads,
        "num_key_value_heads": cfg.n_kv_heads, "head_dim": cfg.head_dim,
        "vocab_size": cfg.vocab_size, "max_position_embeddings": cfg.max_seq_len,
        "rms_norm_eps": cfg.norm_eps, "rope_theta": cfg.rope_theta,
        "tie_word_embeddings": cfg.tied_head, "bos_token_id": cfg.bos_token_id,
        "eos_token_id": list(cfg.eos_token_ids), **numbers,
    }  # fmt: skip


def write_family_hf(
    folder: Path,
    numbers: Mapping[str, object],
    tensors: Tensors,
    *,
    dtype: str = "F32",
    rename: Callable[[str], str] = str,
    extras: Tensors | None = None,
    experts: Tensors | None = None,
) -> Path:
    """A folder of config.json and one safetensors file; extras by their names in the file,
    and experts likewise if they are not to lie as their family has them."""
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(numbers))
    is_post_normed = any("post_ffn_norm" in name for name in tensors)
    names = _HF_POST_NORMED if is_post_normed else _HF
    names = names | _HF_OTHERWISE.get(str(numbers["model_type"]), {})
    dense = without_experts(tensors)
    entries = {rename(_named(name, names, "model.layers")): x for name, x in dense.items()}
    entries |= hf_experts(tensors, numbers["model_type"]) if experts is None else experts
    entries |= extras or {}
    data = {name: (dtype, x.shape, quantize(dtype, x).tobytes()) for name, x in entries.items()}
    (folder / "model.safetensors").write_bytes(safetensors_bytes(data))
    return folder
