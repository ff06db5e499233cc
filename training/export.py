"""Write the checkpoint as the package's GGUF file: python training/export.py."""

from __future__ import annotations

import argparse
from pathlib import Path

import gguf
import numpy as np
import sentencepiece as spm
import torch
from model import Shape

HERE = Path(__file__).parent
MODEL = HERE.parent / "src" / "rllama" / "data" / "story.gguf"
MAX_BYTES = 3_000_000
NORMAL, UNKNOWN, CONTROL, BYTE = 1, 2, 3, 6


def named_tensors(state: dict[str, torch.Tensor], shape: Shape) -> dict[str, np.ndarray]:
    """The weights under their GGUF names; the head is tied, so token_embd serves twice."""
    tensors = {
        "token_embd.weight": state["embed.weight"],
        "output_norm.weight": state["norm.weight"],
    }
    for index in range(shape.n_layers):
        ours, theirs = f"blocks.{index}.", f"blk.{index}."
        q, k, v = state[ours + "qkv.weight"].chunk(3)
        gate, up = state[ours + "gate_up.weight"].chunk(2)
        parts = {
            "attn_norm": state[ours + "attn_norm.weight"],
            "attn_q": q,
            "attn_k": k,
            "attn_v": v,
            "attn_output": state[ours + "out.weight"],
            "ffn_norm": state[ours + "ffn_norm.weight"],
            "ffn_gate": gate,
            "ffn_up": up,
            "ffn_down": state[ours + "down.weight"],
        }
        tensors |= {f"{theirs}{name}.weight": tensor for name, tensor in parts.items()}
    return {name: tensor.contiguous().float().numpy() for name, tensor in tensors.items()}


def add_config(writer: gguf.GGUFWriter, shape: Shape) -> None:
    writer.add_name("RLLaMA Story")
    writer.add_description("Short children's stories, trained on text from a story grammar")
    writer.add_license("MIT")
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_Q8_0)
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    writer.add_context_length(shape.max_seq_len)
    writer.add_embedding_length(shape.dim)
    writer.add_feed_forward_length(shape.ffn_dim)
    writer.add_block_count(shape.n_layers)
    writer.add_head_count(shape.n_heads)
    writer.add_head_count_kv(shape.n_heads)
    writer.add_rope_dimension_count(shape.head_dim)
    writer.add_rope_freq_base(shape.rope_theta)
    writer.add_layer_norm_rms_eps(shape.norm_eps)
    writer.add_vocab_size(shape.vocab_size)


def add_vocabulary(writer: gguf.GGUFWriter, vocabulary: spm.SentencePieceProcessor) -> None:
    ids = range(vocabulary.vocab_size())
    types = [
        UNKNOWN if vocabulary.is_unknown(i)
        else CONTROL if vocabulary.is_control(i)
        else BYTE if vocabulary.is_byte(i)
        else NORMAL
        for i in ids
    ]  # fmt: skip
    writer.add_tokenizer_model("llama")
    writer.add_tokenizer_pre("default")
    writer.add_token_list([vocabulary.id_to_piece(i) for i in ids])
    writer.add_token_scores([vocabulary.get_score(i) for i in ids])
    writer.add_token_types(types)
    writer.add_bos_token_id(vocabulary.bos_id())
    writer.add_eos_token_id(vocabulary.eos_id())
    writer.add_unk_token_id(vocabulary.unk_id())
    writer.add_add_bos_token(True)
    writer.add_add_eos_token(False)
    writer.add_add_space_prefix(True)


def export(work: Path, path: Path) -> None:
    """Quantise work/model.pt to Q8_0 (norms stay F32) and write it with its vocabulary."""
    checkpoint = torch.load(work / "model.pt", weights_only=True)
    shape = Shape(**checkpoint["shape"])
    writer = gguf.GGUFWriter(path, "llama")
    add_config(writer, shape)
    add_vocabulary(writer, spm.SentencePieceProcessor(model_file=str(work / "vocabulary.model")))
    q8 = gguf.GGMLQuantizationType.Q8_0
    for name, tensor in named_tensors(checkpoint["state"], shape).items():
        if tensor.ndim == 2:
            writer.add_tensor(name, gguf.quants.quantize(tensor, q8), raw_dtype=q8)
        else:
            writer.add_tensor(name, tensor)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    if path.stat().st_size > MAX_BYTES:
        raise ValueError(f"{path}: {path.stat().st_size} bytes, at most {MAX_BYTES} are allowed")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, default=HERE / "build")
    parser.add_argument("--out", type=Path, default=MODEL)
    options = parser.parse_args()
    options.out.parent.mkdir(parents=True, exist_ok=True)
    export(options.work, options.out)
