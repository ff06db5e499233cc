"""What each file family calls our tensors: three rename tables, and what other names tell."""

from __future__ import annotations

import re

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
    "blk.{i}.ffn_up.weight": "layers.{i}.w_up",
    "blk.{i}.ffn_down.weight": "layers.{i}.w_down",
}

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

# What a name without a row here tells all the same, by its ending.
_ROLES = (
    (".bias", "biases"),
    ("q_norm.weight", "norms of queries and keys"),
    ("k_norm.weight", "norms of queries and keys"),
    ("rope_freqs.weight", "scaled rope frequencies"),
    ("rope_factors_long.weight", "scaled rope frequencies"),
    ("rope_factors_short.weight", "scaled rope frequencies"),
    ("_exps.weight", "experts"),
    ("_inp.weight", "expert routers"),
)

_LAYER = re.compile(r"\.(0|[1-9][0-9]{0,5})\.", re.ASCII)


def canonical(table: Table, file_name: str) -> str | None:
    """Our name of a tensor, or None if the table does not know it."""
    match = _LAYER.search(file_name)
    if match is None:
        return table.get(file_name) if "{" not in file_name else None
    pattern = f"{file_name[: match.start()]}.{{i}}.{file_name[match.end() :]}"
    found = table.get(pattern)
    return None if found is None else found.replace("{i}", match.group(1))


def in_file(table: Table, canonical_name: str) -> str:
    """The file family's name of one of our tensors."""
    match = _LAYER.search(canonical_name)
    index = "" if match is None else match.group(1)
    pattern = _LAYER.sub(".{i}.", canonical_name, count=1)
    for theirs, ours in table.items():
        if ours == pattern:
            return theirs.replace("{i}", index)
    return canonical_name


def layer_index(canonical_name: str) -> int | None:
    """The layer that a canonical name belongs to, or None."""
    match = _LAYER.search(canonical_name)
    return None if match is None else int(match.group(1))


def role(file_name: str) -> str:
    """What a tensor without a canonical name is for; "" if its name does not tell."""
    return next((words for ending, words in _ROLES if file_name.endswith(ending)), "")
