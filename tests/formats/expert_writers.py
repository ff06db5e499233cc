"""Writers of experts: by name, and in the stacks that files have."""

from __future__ import annotations

import re
from collections.abc import Mapping

import numpy as np
from formats.writers import Tensors

from rllama.quant import quantize

_EXPERT = re.compile(r"layers\.(\d+)\.experts\.(\d+)\.(\w+)")
_GGUF = {
    "w_gate": "ffn_gate_exps.weight", "w_up": "ffn_up_exps.weight",
    "w_down": "ffn_down_exps.weight", "b_gate": "ffn_gate_exps.bias",
    "b_up": "ffn_up_exps.bias", "b_down": "ffn_down_exps.bias",
}  # fmt: skip
_MIXTRAL = {"w_gate": "w1", "w_down": "w2", "w_up": "w3"}
_QWEN = {"w_gate": "gate_proj", "w_down": "down_proj", "w_up": "up_proj"}


def without_experts(tensors: Tensors) -> Tensors:
    return {name: x for name, x in tensors.items() if ".experts." not in name}


def stacked(tensors: Tensors) -> dict[tuple[int, str], np.ndarray]:
    """The experts of each layer, one above the other: by layer and short name."""
    found: dict[tuple[int, str], list[np.ndarray]] = {}
    for name, x in tensors.items():
        if match := _EXPERT.fullmatch(name):
            found.setdefault((int(match[1]), match[3]), []).append(x)
    return {key: np.stack(experts) for key, experts in found.items()}


def gguf_experts(tensors: Tensors) -> Tensors:
    return {f"blk.{i}.{_GGUF[short]}": x for (i, short), x in stacked(tensors).items()}


def gguf_experts_of_old(tensors: Tensors) -> Tensors:
    """Every expert a tensor of its own, as the first converters wrote them."""
    names = {"w_gate": "ffn_gate", "w_up": "ffn_up", "w_down": "ffn_down"}
    return {f"blk.{m[1]}.{names[m[3]]}.{m[2]}.weight": x for name, x in tensors.items()
            if (m := _EXPERT.fullmatch(name))}  # fmt: skip


def hf_experts(tensors: Tensors, model_type: object) -> Tensors:
    """Every expert by name; those of gpt-oss in stacks of floats, turned round."""
    if model_type == "gpt_oss":
        return {name: x for name, (_, x) in gpt_oss_experts(tensors, packed=False).items()}
    found: Tensors = {}
    for name, x in tensors.items():
        if match := _EXPERT.fullmatch(name):
            home = f"model.layers.{match[1]}."
            if model_type == "mixtral":
                home += f"block_sparse_moe.experts.{match[2]}.{_MIXTRAL[match[3]]}.weight"
            else:
                home += f"mlp.experts.{match[2]}.{_QWEN[match[3]]}.weight"
            found[home] = x
    return found


def hf_stacks(tensors: Tensors) -> Tensors:
    """gate_up_proj [E, 2X, D] with gate above up, down_proj [E, D, X]."""
    stacks = stacked(tensors)
    found: Tensors = {}
    for i in {layer for layer, _ in stacks}:
        home = f"model.layers.{i}.mlp.experts."
        both = np.concatenate([stacks[i, "w_gate"], stacks[i, "w_up"]], axis=1)
        found |= {home + "gate_up_proj": both, home + "down_proj": stacks[i, "w_down"]}
    return found


def in_turns(gate: np.ndarray, up: np.ndarray) -> np.ndarray:
    """[E, X, ...] twice as [E, 2X, ...], a row of one after a row of the other."""
    return np.stack([gate, up], axis=2).reshape(len(gate), -1, *gate.shape[2:])


def gpt_oss_experts(tensors: Tensors, *, packed: bool) -> Mapping[str, tuple[str, np.ndarray]]:
    """The stacks of gpt-oss: type and values by name; packed in MXFP4 or as floats."""
    stacks = stacked(tensors)
    found: dict[str, tuple[str, np.ndarray]] = {}
    for i in {layer for layer, _ in stacks}:
        home = f"model.layers.{i}.mlp.experts."
        gate_up = in_turns(stacks[i, "w_gate"], stacks[i, "w_up"])
        found[home + "gate_up_proj_bias"] = "F32", in_turns(stacks[i, "b_gate"], stacks[i, "b_up"])
        found[home + "down_proj_bias"] = "F32", stacks[i, "b_down"]
        for short, x in (("gate_up_proj", gate_up), ("down_proj", stacks[i, "w_down"])):
            if not packed:
                found[home + short] = "F32", np.ascontiguousarray(x.swapaxes(1, 2))
                continue
            blocks, scales = mxfp4(x)
            found |= {home + short + "_blocks": ("U8", blocks),
                      home + short + "_scales": ("U8", scales)}  # fmt: skip
    return found


def mxfp4(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Nibbles [E, N, K/32, 16], even values in the low halves, and scales [E, N, K/32]."""
    rows = quantize("MXFP4", x).reshape(*x.shape[:2], x.shape[2] // 32, 17)
    values = np.concatenate([rows[..., 1:] & 15, rows[..., 1:] >> 4], axis=-1)  # [..., 32]
    return values[..., 0::2] | values[..., 1::2] << 4, np.ascontiguousarray(rows[..., 0])
