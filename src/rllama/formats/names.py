"""What each file family calls our tensors: rename tables, and what other names tell."""

from __future__ import annotations

import re
from collections.abc import Iterable

from rllama.formats.names_experts import GGUF_EXPERTS, HF_EXPERTS

Table = dict[str, str]

GGUF: Table = {
    "token_embd.weight": "embed",
    "output_norm.weight": "final_norm",
    "output.weight": "lm_head",
    "blk.{i}.attn_norm.weight": "layers.{i}.attn_norm",
    "blk.{i}.attn_q.weight": "layers.{i}.wq",
    "blk.{i}.attn_k.weight": "layers.{i}.wk",
    "blk.{i}.attn_v.weight": "layers.{i}.wv",
    "blk.{i}.attn_output.weight": "layers.{i}.wo",
    "blk.{i}.ffn_norm.weight": "layers.{i}.ffn_norm",
    "blk.{i}.ffn_gate.weight": "layers.{i}.w_gate",
    "blk.{i}.ffn_up.weight": "layers.{i}.w_up",  # or gate and up in one, twice as high
    "blk.{i}.ffn_down.weight": "layers.{i}.w_down",
    "blk.{i}.attn_qkv.weight": "layers.{i}.wqkv",
    "blk.{i}.attn_q.bias": "layers.{i}.bq",
    "blk.{i}.attn_k.bias": "layers.{i}.bk",
    "blk.{i}.attn_v.bias": "layers.{i}.bv",
    "blk.{i}.attn_output.bias": "layers.{i}.bo",
    "blk.{i}.ffn_gate.bias": "layers.{i}.b_gate",
    "blk.{i}.ffn_up.bias": "layers.{i}.b_up",
    "blk.{i}.ffn_down.bias": "layers.{i}.b_down",
    "blk.{i}.attn_q_norm.weight": "layers.{i}.q_norm",
    "blk.{i}.attn_k_norm.weight": "layers.{i}.k_norm",
    "blk.{i}.post_attention_norm.weight": "layers.{i}.post_attn_norm",
    "blk.{i}.post_ffw_norm.weight": "layers.{i}.post_ffn_norm",
    "blk.{i}.attn_sinks.weight": "layers.{i}.sinks",
    **GGUF_EXPERTS,
}

# Two architectures call the norm in front of the feed-forward one behind the attention.
GGUF_GPT_OSS: Table = GGUF | {"blk.{i}.post_attention_norm.weight": "layers.{i}.ffn_norm"}

# Numbers that a GGUF keeps in tensors: what the period of every rotated pair is multiplied by.
GGUF_ROPE_FACTORS = ("rope_freqs.weight", "rope_factors_short.weight", "rope_factors_long.weight")

HF: Table = {
    "model.embed_tokens.weight": "embed",
    "model.norm.weight": "final_norm",
    "lm_head.weight": "lm_head",
    "model.layers.{i}.input_layernorm.weight": "layers.{i}.attn_norm",
    "model.layers.{i}.self_attn.q_proj.weight": "layers.{i}.wq",
    "model.layers.{i}.self_attn.k_proj.weight": "layers.{i}.wk",
    "model.layers.{i}.self_attn.v_proj.weight": "layers.{i}.wv",
    "model.layers.{i}.self_attn.o_proj.weight": "layers.{i}.wo",
    "model.layers.{i}.post_attention_layernorm.weight": "layers.{i}.ffn_norm",
    "model.layers.{i}.mlp.gate_proj.weight": "layers.{i}.w_gate",
    "model.layers.{i}.mlp.up_proj.weight": "layers.{i}.w_up",
    "model.layers.{i}.mlp.down_proj.weight": "layers.{i}.w_down",
    "model.layers.{i}.self_attn.qkv_proj.weight": "layers.{i}.wqkv",
    "model.layers.{i}.self_attn.q_proj.bias": "layers.{i}.bq",
    "model.layers.{i}.self_attn.k_proj.bias": "layers.{i}.bk",
    "model.layers.{i}.self_attn.v_proj.bias": "layers.{i}.bv",
    "model.layers.{i}.self_attn.o_proj.bias": "layers.{i}.bo",
    "model.layers.{i}.self_attn.q_norm.weight": "layers.{i}.q_norm",
    "model.layers.{i}.self_attn.k_norm.weight": "layers.{i}.k_norm",
    "model.layers.{i}.mlp.gate_up_proj.weight": "layers.{i}.w_gate_up",
    "model.layers.{i}.mlp.gate_proj.bias": "layers.{i}.b_gate",
    "model.layers.{i}.mlp.up_proj.bias": "layers.{i}.b_up",
    "model.layers.{i}.mlp.down_proj.bias": "layers.{i}.b_down",
    "model.layers.{i}.self_attn.sinks": "layers.{i}.sinks",
    **HF_EXPERTS,
}

# Where a layer has a norm behind its feed-forward, the norm behind its attention has the name that
# otherwise belongs to the norm in front of the feed-forward.
HF_POST_NORMED: Table = HF | {
    "model.layers.{i}.post_attention_layernorm.weight": "layers.{i}.post_attn_norm",
    "model.layers.{i}.pre_feedforward_layernorm.weight": "layers.{i}.ffn_norm",
    "model.layers.{i}.post_feedforward_layernorm.weight": "layers.{i}.post_ffn_norm",
}

# GLM-4 has the same norms and leaves the older name where it was.
HF_GLM4: Table = HF | {
    "model.layers.{i}.post_self_attn_layernorm.weight": "layers.{i}.post_attn_norm",
    "model.layers.{i}.post_mlp_layernorm.weight": "layers.{i}.post_ffn_norm",
}

META: Table = {
    "tok_embeddings.weight": "embed",
    "norm.weight": "final_norm",
    "output.weight": "lm_head",
    "layers.{i}.attention_norm.weight": "layers.{i}.attn_norm",
    "layers.{i}.attention.wq.weight": "layers.{i}.wq",
    "layers.{i}.attention.wk.weight": "layers.{i}.wk",
    "layers.{i}.attention.wv.weight": "layers.{i}.wv",
    "layers.{i}.attention.wo.weight": "layers.{i}.wo",
    "layers.{i}.ffn_norm.weight": "layers.{i}.ffn_norm",
    "layers.{i}.feed_forward.w1.weight": "layers.{i}.w_gate",
    "layers.{i}.feed_forward.w2.weight": "layers.{i}.w_down",
    "layers.{i}.feed_forward.w3.weight": "layers.{i}.w_up",
}

# The arrays of llama2.c files have no names in the file; these are the exporter's.
LLAMA2C: Table = {
    "tok_embeddings": "embed",
    "norm": "final_norm",
    "output": "lm_head",
    "layers.{i}.attention_norm": "layers.{i}.attn_norm",
    "layers.{i}.wq": "layers.{i}.wq",
    "layers.{i}.wk": "layers.{i}.wk",
    "layers.{i}.wv": "layers.{i}.wv",
    "layers.{i}.wo": "layers.{i}.wo",
    "layers.{i}.ffn_norm": "layers.{i}.ffn_norm",
    "layers.{i}.w1": "layers.{i}.w_gate",
    "layers.{i}.w2": "layers.{i}.w_down",
    "layers.{i}.w3": "layers.{i}.w_up",
}

_TEXT_PARTS = (
    ("language_model.model.", "model."),
    ("language_model.lm_head.", "lm_head."),
    ("model.language_model.", "model."),
)

# Parts that text does not pass through: those of a model that also sees, those that guess ahead.
_ASIDE = ("vision_tower.", "multi_modal_projector.", "vision_model.", "mtp")

# What a name without a row here tells all the same, by its ending.
_ROLES = (
    (".bias", "biases"),
    ("norm.weight", "norms at this place"),
    ("_exps.weight", "experts"),
    ("_shexp.weight", "shared experts"),
    (".weight", "weights that nothing here knows"),
)

_LAYER = re.compile(r"\.(0|[1-9][0-9]{0,5})\.", re.ASCII)


def canonical(table: Table, file_name: str) -> str | None:
    """Our name of a tensor, or None if the table does not know it."""
    if "{" in file_name:
        return None
    pattern, numbers = _pattern(file_name)
    found = table.get(pattern)
    return None if found is None else _filled(found, numbers)


def hf_table(file_names: Iterable[str]) -> Table:
    """The rename table of a model in Hugging Face's layout, which its own tensors tell."""
    tables = {"post_feedforward_layernorm": HF_POST_NORMED, "post_mlp_layernorm": HF_GLM4}
    kinds = (kind for name in file_names for kind in tables if kind in name)
    return tables.get(next(kinds, ""), HF)


def gguf_table(arch: object) -> Table:
    """The rename table of an architecture."""
    return GGUF_GPT_OSS if arch in ("gpt-oss", "seed_oss") else GGUF


def hf_text_name(file_name: str) -> str:
    """The name as a model of text alone has it: one that also sees keeps its text part apart."""
    for prefix, plain in _TEXT_PARTS:
        if file_name.startswith(prefix):
            return plain + file_name.removeprefix(prefix)
    return file_name


def in_file(table: Table, canonical_name: str) -> str:
    """The file family's name of one of our tensors."""
    pattern, numbers = _pattern(canonical_name)
    for theirs, ours in table.items():
        if ours == pattern:
            return _filled(theirs, numbers)
    return canonical_name


def _pattern(name: str) -> tuple[str, list[str]]:
    """A name with {i} for its first number and {e} for its second, and the numbers."""
    numbers: list[str] = []
    for place in ("{i}", "{e}"):
        match = _LAYER.search(name)
        if match is None:
            break
        numbers.append(match.group(1))
        name = f"{name[: match.start()]}.{place}.{name[match.end() :]}"
    return name, numbers


def _filled(pattern: str, numbers: list[str]) -> str:
    for place, number in zip(("{i}", "{e}"), numbers, strict=False):
        pattern = pattern.replace(place, number)
    return pattern


def layer_index(canonical_name: str) -> int | None:
    """The layer that a canonical name belongs to, or None."""
    match = _LAYER.search(canonical_name)
    return None if match is None else int(match.group(1))


def role(file_name: str) -> str:
    """What a tensor without a canonical name is for; "" if its name does not tell."""
    if file_name.removeprefix("model.").startswith(_ASIDE):
        return ""
    return next((words for ending, words in _ROLES if file_name.endswith(ending)), "")
