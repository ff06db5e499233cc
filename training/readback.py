"""Read the exported GGUF file back into torch, so that what is judged is what is shipped."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np
import torch
from model import Llama, Shape


def read(path: Path) -> tuple[Llama, list[bytes]]:
    """The model with its Q8_0 weights dequantised, and the bytes of every token."""
    reader = gguf.GGUFReader(path)

    def number(key: str) -> float:
        return reader.fields[f"llama.{key}"].contents()

    shape = Shape(
        vocab_size=int(number("vocab_size")),
        dim=int(number("embedding_length")),
        ffn_dim=int(number("feed_forward_length")),
        n_layers=int(number("block_count")),
        n_heads=int(number("attention.head_count")),
        max_seq_len=int(number("context_length")),
        rope_theta=float(number("rope.freq_base")),
    )
    tensors = {
        t.name: torch.from_numpy(
            np.array(gguf.quants.dequantize(t.data, t.tensor_type), dtype=np.float32)
        )
        for t in reader.tensors
    }
    model = Llama(shape)
    model.load_state_dict(_state_of(tensors, shape))
    model.eval()
    pieces = reader.fields["tokenizer.ggml.tokens"].contents()
    kinds = reader.fields["tokenizer.ggml.token_type"].contents()
    return model, [_bytes_of(p, k) for p, k in zip(pieces, kinds, strict=True)]


def _state_of(tensors: dict[str, torch.Tensor], shape: Shape) -> dict[str, torch.Tensor]:
    state = {
        "embed.weight": tensors["token_embd.weight"],
        "norm.weight": tensors["output_norm.weight"],
    }
    for index in range(shape.n_layers):
        ours, theirs = f"blocks.{index}.", f"blk.{index}."

        def joined(*names: str, prefix: str = theirs) -> torch.Tensor:
            return torch.cat([tensors[f"{prefix}{name}.weight"] for name in names])

        state[ours + "qkv.weight"] = joined("attn_q", "attn_k", "attn_v")
        state[ours + "gate_up.weight"] = joined("ffn_gate", "ffn_up")
        state[ours + "out.weight"] = joined("attn_output")
        state[ours + "down.weight"] = joined("ffn_down")
        state[ours + "attn_norm.weight"] = joined("attn_norm")
        state[ours + "ffn_norm.weight"] = joined("ffn_norm")
    return state


def _bytes_of(piece: str, kind: int) -> bytes:
    if kind == gguf.TokenType.BYTE:
        return bytes([int(piece[3:5], 16)])
    if kind in (gguf.TokenType.CONTROL, gguf.TokenType.UNKNOWN):
        return b""
    return piece.replace("\u2581", " ").encode()
