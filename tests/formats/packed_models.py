"""Folders with a tiny model whose matrices are packed as GPTQ or AWQ, and what they stand for."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from formats.packers import Quantised, awq_tensors, gptq_tensors, quantised
from formats.writers import hf_config, hf_name, random_model, safetensors_bytes, tiny_config
from numpy.typing import NDArray

from rllama.config import ModelConfig

Arrays = dict[str, NDArray[np.generic]]
_TYPES = {"int32": "I32", "float16": "F16", "float32": "F32", "uint16": "BF16", "int64": "I64"}

# Widths that hold several groups of 128; half pairing, so that no row has to move.
CFG = tiny_config(dim=128, ffn_dim=256, n_layers=1, head_dim=16, n_heads=8, n_kv_heads=4,
                  vocab_size=96, rope_style="half")  # fmt: skip


@dataclass(frozen=True)
class PackedModel:
    """A model to be written, and its weights in float64 under canonical names."""

    tensors: Arrays
    config: dict[str, object]
    weights: dict[str, NDArray[np.float64]]


def gptq_model(
    bits: int = 4,
    group_size: int = 32,
    *,
    cfg: ModelConfig = CFG,
    act_order: bool = False,
    sym: bool = False,
    v2: bool = False,
    with_g_idx: bool = True,
    scale_type: str = "<f2",
) -> PackedModel:
    """Every matrix of the layers packed; inputs that share activations share their order."""
    seeds = {"wq": 1, "wk": 1, "wv": 1, "wo": 2, "w_gate": 3, "w_up": 3, "w_down": 4}

    def pack(name: str, weight: NDArray[np.floating]) -> tuple[Quantised, Arrays]:
        seed = seeds[name.rpartition(".")[2]]
        matrix = quantised(weight, bits, group_size, seed=seed, act_order=act_order, sym=sym,
                           scale_type=scale_type)  # fmt: skip
        prefix = hf_name(name).removesuffix(".weight")
        return matrix, gptq_tensors(prefix, matrix, v2=v2, with_g_idx=with_g_idx)

    scheme: dict[str, object] = {"quant_method": "gptq", "bits": bits, "group_size": group_size,
                                 "desc_act": act_order, "sym": sym}  # fmt: skip
    if v2:
        scheme["checkpoint_format"] = "gptq_v2"
    return _model(cfg, scheme, pack)


def awq_model(group_size: int = 32, *, cfg: ModelConfig = CFG) -> PackedModel:
    def pack(name: str, weight: NDArray[np.floating]) -> tuple[Quantised, Arrays]:
        matrix = quantised(weight, 4, group_size)
        return matrix, awq_tensors(hf_name(name).removesuffix(".weight"), matrix)

    scheme: dict[str, object] = {"quant_method": "awq", "bits": 4, "group_size": group_size,
                                 "zero_point": True, "version": "gemm"}  # fmt: skip
    return _model(cfg, scheme, pack)


def _model(
    cfg: ModelConfig,
    scheme: dict[str, object],
    pack: Callable[[str, NDArray[np.floating]], tuple[Quantised, Arrays]],
) -> PackedModel:
    tensors: Arrays = {}
    weights: dict[str, NDArray[np.float64]] = {}
    for name, x in random_model(cfg, seed=11).items():
        if x.ndim == 2 and name.startswith("layers."):
            matrix, parts = pack(name, x)
            tensors |= parts
            weights[name] = matrix.values
        else:
            tensors[hf_name(name)] = x.astype(np.float16)
            weights[name] = x.astype(np.float16).astype(np.float64)
    return PackedModel(tensors, {**hf_config(cfg), "quantization_config": scheme}, weights)


def write_packed(folder: Path, model: PackedModel, **config: object) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps({**model.config, **config}))
    (folder / "model.safetensors").write_bytes(packed_bytes(model.tensors))
    return folder


def packed_bytes(tensors: Arrays) -> bytes:
    return safetensors_bytes(
        {name: (_TYPES[x.dtype.name], x.shape, x.tobytes()) for name, x in tensors.items()}
    )
