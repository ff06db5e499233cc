"""Writers of tiny model files for tests, independent of the readers under test."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from rllama.config import ModelConfig
from rllama.quant import CODECS, quantize
from rllama.quant.noise import random_blocks

Tensors = dict[str, np.ndarray]

GGUF_TYPE_IDS = {
    "F32": 0, "F16": 1, "Q4_0": 2, "Q4_1": 3, "Q5_0": 6, "Q5_1": 7, "Q8_0": 8, "Q2_K": 10,
    "Q3_K": 11, "Q4_K": 12, "Q5_K": 13, "Q6_K": 14, "IQ2_XXS": 16, "IQ2_XS": 17, "IQ3_XXS": 18,
    "IQ1_S": 19, "IQ4_NL": 20, "IQ3_S": 21, "IQ2_S": 22, "IQ4_XS": 23, "IQ1_M": 29, "BF16": 30,
    "TQ1_0": 34, "TQ2_0": 35, "MXFP4": 39,
}  # fmt: skip
U8, I8, U16, I16, U32, I32, F32, BOOL, STRING, ARRAY, U64, I64, F64 = range(13)
_CODES = dict(
    zip((U8, I8, U16, I16, U32, I32, F32, BOOL, U64, I64, F64), "BbHhIifBQqd", strict=True)
)


def tiny_config(**changes: object) -> ModelConfig:
    """A model of a few kilobytes, with grouped heads."""
    numbers: dict[str, object] = {
        "arch": "llama", "dim": 32, "ffn_dim": 64, "n_layers": 2, "n_heads": 4, "n_kv_heads": 2,
        "head_dim": 8, "vocab_size": 288, "max_seq_len": 64, "rope_style": "interleaved",
        "bos_token_id": 1, "eos_token_ids": (2,),
    }  # fmt: skip
    return ModelConfig(**{**numbers, **changes})  # type: ignore[arg-type]


def random_model(cfg: ModelConfig, seed: int) -> Tensors:
    """Weights under canonical names, in the config's own rope pairing.

    Shapes: matrices [N, K] f32 with a spread of 1/sqrt(K), vectors near 1
    """
    rng = np.random.default_rng(seed)
    q, kv = cfg.n_heads * cfg.head_dim, cfg.n_kv_heads * cfg.head_dim

    def matrix(n: int, k: int) -> np.ndarray:
        return (rng.standard_normal((n, k)) / np.sqrt(k)).astype(np.float32)

    def vector(n: int) -> np.ndarray:
        return (1 + 0.1 * rng.standard_normal(n)).astype(np.float32)

    tensors = {"embed": matrix(cfg.vocab_size, cfg.dim)}
    for i in range(cfg.n_layers):
        tensors |= {
            f"layers.{i}.attn_norm": vector(cfg.dim), f"layers.{i}.wq": matrix(q, cfg.dim),
            f"layers.{i}.wk": matrix(kv, cfg.dim), f"layers.{i}.wv": matrix(kv, cfg.dim),
            f"layers.{i}.wo": matrix(cfg.dim, q), f"layers.{i}.ffn_norm": vector(cfg.dim),
            f"layers.{i}.w_gate": matrix(cfg.ffn_dim, cfg.dim),
            f"layers.{i}.w_up": matrix(cfg.ffn_dim, cfg.dim),
            f"layers.{i}.w_down": matrix(cfg.dim, cfg.ffn_dim),
        }  # fmt: skip
    tensors["final_norm"] = vector(cfg.dim)
    if not cfg.tied_head:
        tensors["lm_head"] = matrix(cfg.vocab_size, cfg.dim)
    return tensors


# ---- vocabulary ----


@dataclass(frozen=True)
class Vocab:
    """Pieces of a SentencePiece vocabulary with byte fallback."""

    pieces: list[str]
    scores: list[float]
    types: list[int]


def small_vocab(n: int) -> Vocab:
    """`<unk> <s> </s>`, 256 bytes, the space, the letters, then joined letters."""
    assert n >= 259
    letters = ["▁", *"etaoinshrdlucmfwypvbgkqjxz"]
    pairs = [a + b for a in letters for b in letters[1:]]
    triples = [a + b for a in pairs for b in letters[1:]]
    normal = [*letters, *pairs, *triples][: n - 259]
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{b:02X}>" for b in range(256)), *normal]
    scores = [0.0] * 259 + [-float(i) for i in range(len(normal))]
    types = [2, 3, 3, *[6] * 256, *[1] * len(normal)]
    assert len(pieces) == n
    return Vocab(pieces, scores, types)


# ---- GGUF ----


def gguf_string(text: str | bytes) -> bytes:
    data = text.encode() if isinstance(text, str) else text
    return struct.pack("<Q", len(data)) + data


def gguf_value(kind: int, value: object) -> bytes:
    """A value; bytes pass as they are; an array is (element kind, items)."""
    if isinstance(value, bytes) and kind != STRING:
        return value
    if kind == STRING:
        return gguf_string(value)  # type: ignore[arg-type]
    if kind == ARRAY:
        element, items = value  # type: ignore[misc]
        head = struct.pack("<IQ", element, len(items))
        return head + b"".join(gguf_value(element, item) for item in items)
    return struct.pack("<" + _CODES[kind], value)


def gguf_kv(key: str | bytes, kind: int, value: object) -> bytes:
    return gguf_string(key) + struct.pack("<I", kind) + gguf_value(kind, value)


@dataclass
class RawTensor:
    """A tensor record; dims as in the file (fastest first), offset None for the next free one."""

    name: str | bytes
    dims: tuple[int, ...]
    type_id: int
    data: bytes
    offset: int | None = None
    n_dims: int | None = None


@dataclass
class RawGguf:
    """All parts of a GGUF file, each of which a test may falsify before `to_bytes`."""

    kvs: dict[str, tuple[int, object]] = field(default_factory=dict)
    tensors: list[RawTensor] = field(default_factory=list)
    extra_kvs: list[bytes] = field(default_factory=list)
    version: int = 3
    alignment: int = 32
    n_tensors: int | None = None
    n_kvs: int | None = None
    tail: bytes = b""

    def header(self) -> bytes:
        parts = [gguf_kv(key, kind, value) for key, (kind, value) in self.kvs.items()]
        parts += self.extra_kvs
        n_kvs = len(parts) if self.n_kvs is None else self.n_kvs
        n_tensors = len(self.tensors) if self.n_tensors is None else self.n_tensors
        at = 0
        for tensor in self.tensors:
            offset = at if tensor.offset is None else tensor.offset
            n_dims = len(tensor.dims) if tensor.n_dims is None else tensor.n_dims
            parts.append(
                gguf_string(tensor.name)
                + struct.pack("<I", n_dims)
                + struct.pack(f"<{len(tensor.dims)}Q", *tensor.dims)
                + struct.pack("<IQ", tensor.type_id, offset)
            )
            at += -(-len(tensor.data) // self.alignment) * self.alignment
        return struct.pack("<4sIQQ", b"GGUF", self.version, n_tensors, n_kvs) + b"".join(parts)

    def to_bytes(self) -> bytes:
        out = bytearray(self.header())
        for tensor in self.tensors:
            out += bytes(-len(out) % self.alignment)
            out += tensor.data
        return bytes(out) + self.tail


_GGUF_NAMES = {
    "embed": "token_embd", "final_norm": "output_norm", "lm_head": "output", "wq": "attn_q",
    "wk": "attn_k", "wv": "attn_v", "wo": "attn_output", "attn_norm": "attn_norm",
    "ffn_norm": "ffn_norm", "w_gate": "ffn_gate", "w_up": "ffn_up", "w_down": "ffn_down",
}  # fmt: skip


def _gguf_name(canonical: str) -> str:
    layer, dot, last = canonical.rpartition(".")
    return f"{layer.replace('layers', 'blk')}{dot}{_GGUF_NAMES[last]}.weight"


def tensor_bytes(kind: str, x: np.ndarray) -> bytes:
    """The values in a weight type; where nothing quantises to it, noise of the same size."""
    if CODECS[kind].quantize is not None:
        return quantize(kind, x).tobytes()
    rng = np.random.default_rng(GGUF_TYPE_IDS[kind] + x.size)
    return random_blocks(kind, rng, x.size, float(np.sqrt(np.mean(x * x)))).tobytes()


def raw_gguf(
    cfg: ModelConfig,
    tensors: Mapping[str, np.ndarray],
    types: str | Mapping[str, str] = "F32",
    vocab: Vocab | None = None,
) -> RawGguf:
    """The parts of a correct file. Types by canonical name or one for all; vectors stay F32."""
    kvs: dict[str, tuple[int, object]] = {
        "general.architecture": (STRING, cfg.arch),
        "general.name": (STRING, cfg.name or "tiny"),
        "llama.context_length": (U32, cfg.max_seq_len),
        "llama.embedding_length": (U32, cfg.dim),
        "llama.block_count": (U32, cfg.n_layers),
        "llama.feed_forward_length": (U32, cfg.ffn_dim),
        "llama.attention.head_count": (U32, cfg.n_heads),
        "llama.attention.head_count_kv": (U32, cfg.n_kv_heads),
        "llama.attention.key_length": (U32, cfg.head_dim),
        "llama.attention.value_length": (U32, cfg.head_dim),
        "llama.attention.layer_norm_rms_epsilon": (F32, cfg.norm_eps),
        "llama.rope.dimension_count": (U32, cfg.head_dim),
        "llama.rope.freq_base": (F32, cfg.rope_theta),
    }
    if vocab is not None:
        kvs |= {
            "tokenizer.ggml.model": (STRING, "llama"),
            "tokenizer.ggml.tokens": (ARRAY, (STRING, vocab.pieces)),
            "tokenizer.ggml.scores": (ARRAY, (F32, vocab.scores)),
            "tokenizer.ggml.token_type": (ARRAY, (I32, vocab.types)),
            "tokenizer.ggml.bos_token_id": (U32, 1),
            "tokenizer.ggml.eos_token_id": (U32, 2),
            "tokenizer.ggml.unknown_token_id": (U32, 0),
        }
    records = []
    for name, x in tensors.items():
        kind = types if isinstance(types, str) else types.get(name, "F32")
        kind = "F32" if x.ndim == 1 else kind
        data = tensor_bytes(kind, x)
        records.append(RawTensor(_gguf_name(name), x.shape[::-1], GGUF_TYPE_IDS[kind], data))
    return RawGguf(kvs, records)


def write_gguf(
    path: str | Path,
    cfg: ModelConfig,
    tensors: Mapping[str, np.ndarray],
    types: str | Mapping[str, str] = "F32",
    vocab: Vocab | None = None,
) -> Path:
    """Write a GGUF file; q and k rows are written as they are (interleaved pairing)."""
    path = Path(path)
    path.write_bytes(raw_gguf(cfg, tensors, types, vocab).to_bytes())
    return path


def split_gguf(raw: RawGguf, n_pieces: int) -> dict[str, RawGguf]:
    """A file cut into pieces of about as many tensors each, by the names that they go by."""
    pieces: dict[str, RawGguf] = {}
    bounds = [len(raw.tensors) * i // n_pieces for i in range(n_pieces + 1)]
    for i in range(n_pieces):
        numbers: dict[str, tuple[int, object]] = {
            "split.no": (U16, i),
            "split.count": (U16, n_pieces),
            "split.tensors.count": (I32, len(raw.tensors)),
        }
        keys = {**raw.kvs, **numbers} if i == 0 else numbers
        piece = RawGguf(keys, raw.tensors[bounds[i] : bounds[i + 1]])
        pieces[f"tiny-{i + 1:05}-of-{n_pieces:05}.gguf"] = piece
    return pieces


def write_pieces(folder: Path, pieces: Mapping[str, RawGguf]) -> list[Path]:
    """Write them all; their paths in order."""
    for name, piece in pieces.items():
        (folder / name).write_bytes(piece.to_bytes())
    return [folder / name for name in pieces]


# ---- Hugging Face ----

_HF_NAMES = {
    "attn_norm": "input_layernorm", "wq": "self_attn.q_proj", "wk": "self_attn.k_proj",
    "wv": "self_attn.v_proj", "wo": "self_attn.o_proj", "ffn_norm": "post_attention_layernorm",
    "w_gate": "mlp.gate_proj", "w_up": "mlp.up_proj", "w_down": "mlp.down_proj",
    "embed": "embed_tokens", "final_norm": "norm",
}  # fmt: skip


def hf_name(canonical: str) -> str:
    if canonical == "lm_head":
        return "lm_head.weight"
    layer, dot, last = canonical.rpartition(".")
    return f"model.{layer}{dot}{_HF_NAMES[last]}.weight"


def to_half_pairing(x: np.ndarray, n_heads: int) -> np.ndarray:
    """Rows of wq or wk from interleaved pairs (0,1)(2,3)… to halves (0,d/2)(1,d/2+1)…."""
    rows, k = x.shape
    return x.reshape(n_heads, rows // n_heads // 2, 2, k).swapaxes(1, 2).reshape(rows, k)


def hf_config(cfg: ModelConfig) -> dict[str, object]:
    """A config.json as transformers writes it."""
    eos = cfg.eos_token_ids
    return {
        "architectures": ["LlamaForCausalLM"], "model_type": cfg.arch, "hidden_act": "silu",
        "hidden_size": cfg.dim, "intermediate_size": cfg.ffn_dim,
        "num_hidden_layers": cfg.n_layers, "num_attention_heads": cfg.n_heads,
        "num_key_value_heads": cfg.n_kv_heads, "head_dim": cfg.head_dim,
        "vocab_size": cfg.vocab_size, "max_position_embeddings": cfg.max_seq_len,
        "rms_norm_eps": cfg.norm_eps, "rope_theta": cfg.rope_theta, "rope_scaling": None,
        "tie_word_embeddings": cfg.tied_head, "bos_token_id": cfg.bos_token_id,
        "eos_token_id": None if not eos else eos[0] if len(eos) == 1 else list(eos),
        "attention_bias": False, "mlp_bias": False, "torch_dtype": "float32",
    }  # fmt: skip


def hf_tensors(cfg: ModelConfig, tensors: Mapping[str, np.ndarray]) -> Tensors:
    """The same model under Hugging Face's names, q and k in its pairing."""
    found = {}
    for name, x in tensors.items():
        if cfg.rope_style == "interleaved" and name.endswith((".wq", ".wk")):
            x = to_half_pairing(x, cfg.n_heads if name.endswith("q") else cfg.n_kv_heads)
        found[hf_name(name)] = x
    return found


def safetensors_bytes(
    entries: Mapping[str, tuple[str, Sequence[int], bytes]], metadata: object = None
) -> bytes:
    """A safetensors file from name -> (dtype, shape, data)."""
    header: dict[str, object] = {} if metadata is None else {"__metadata__": metadata}
    at = 0
    for name, (dtype, shape, data) in entries.items():
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [at, at + len(data)]}
        at += len(data)
    return safetensors_raw(json.dumps(header), b"".join(data for _, _, data in entries.values()))


def safetensors_raw(header: str | bytes, data: bytes = b"") -> bytes:
    """A safetensors file from the text of its header."""
    text = header.encode() if isinstance(header, str) else header
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text + data


def write_hf(
    folder: str | Path,
    cfg: ModelConfig,
    tensors: Mapping[str, np.ndarray],
    dtype: str = "F32",
    n_shards: int = 1,
) -> Path:
    """Write config.json and one safetensors file, or n_shards and their index."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(hf_config(cfg), indent=1))
    entries = {
        name: (dtype, x.shape, quantize(dtype, x).tobytes())
        for name, x in hf_tensors(cfg, tensors).items()
    }
    if n_shards == 1:
        (folder / "model.safetensors").write_bytes(safetensors_bytes(entries, {"format": "pt"}))
        return folder
    names = list(entries)
    weight_map: dict[str, str] = {}
    for shard in range(n_shards):
        file_name = f"model-{shard + 1:05d}-of-{n_shards:05d}.safetensors"
        part = names[len(names) * shard // n_shards : len(names) * (shard + 1) // n_shards]
        weight_map |= dict.fromkeys(part, file_name)
        (folder / file_name).write_bytes(safetensors_bytes({name: entries[name] for name in part}))
    index = {"metadata": {}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder


# ---- llama2.c ----

_MAGIC = 0x616B3432
_MATRICES = ("wq", "wk", "wv", "wo", "w_gate", "w_down", "w_up")


def llama2c_bytes(
    cfg: ModelConfig, tensors: Mapping[str, np.ndarray], version: int = 0, group_size: int = 32
) -> bytes:
    """A llama2.c file; the head is shared if `tensors` has no lm_head."""
    shared = "lm_head" not in tensors
    layers = range(cfg.n_layers)

    def stack(kind: str) -> list[np.ndarray]:
        return [tensors[f"layers.{i}.{kind}"] for i in layers]

    numbers = [cfg.dim, cfg.ffn_dim, cfg.n_layers, cfg.n_heads, cfg.n_kv_heads, cfg.vocab_size,
               cfg.max_seq_len]  # fmt: skip
    head = [] if shared else [tensors["lm_head"]]
    if version == 0:
        numbers[5] = cfg.vocab_size if shared else -cfg.vocab_size
        rotations = np.zeros(cfg.max_seq_len * cfg.head_dim, np.float32)
        arrays = [tensors["embed"], *stack("attn_norm"), *stack("wq"), *stack("wk"), *stack("wv"),
                  *stack("wo"), *stack("ffn_norm"), *stack("w_gate"), *stack("w_down"),
                  *stack("w_up"), tensors["final_norm"], rotations, *head]  # fmt: skip
        return struct.pack("<7i", *numbers) + b"".join(a.astype("<f4").tobytes() for a in arrays)
    start = struct.pack("<Ii7iB", _MAGIC, version, *numbers, shared)
    start += struct.pack("<i", group_size) if version == 2 else b""
    norms = [*stack("attn_norm"), *stack("ffn_norm"), tensors["final_norm"]]
    matrices = [tensors["embed"], *(a for kind in _MATRICES for a in stack(kind)), *head]
    body = b"".join(a.astype("<f4").tobytes() for a in norms)
    for matrix in matrices:
        body += group_bytes(matrix, group_size) if version == 2 else matrix.astype("<f4").tobytes()
    return start.ljust(256, b"\0") + body


def group_bytes(matrix: np.ndarray, group_size: int) -> bytes:
    """All int8 values of a matrix, then all f32 scales; groups run over the flattened matrix."""
    groups = matrix.astype(np.float32).reshape(-1, group_size)
    scales = np.abs(groups).max(axis=1, keepdims=True) / np.float32(127)
    return np.rint(groups / scales).astype(np.int8).tobytes() + scales.astype("<f4").tobytes()


def write_llama2c(
    path: str | Path,
    cfg: ModelConfig,
    tensors: Mapping[str, np.ndarray],
    version: int = 0,
    group_size: int = 32,
) -> Path:
    """Write a llama2.c file of version 0, 1 or 2; q and k rows as they are (interleaved)."""
    path = Path(path)
    path.write_bytes(llama2c_bytes(cfg, tensors, version, group_size))
    return path


def llama2c_tokenizer_bytes(vocab: Vocab) -> bytes:
    """A tokenizer.bin: spaces plain, BOS and EOS between newlines."""
    texts = [piece.replace("▁", " ").encode() for piece in vocab.pieces]
    texts[1:3] = [b"\n<s>\n", b"\n</s>\n"]
    records = (struct.pack("<fi", score, len(text)) + text
               for text, score in zip(texts, vocab.scores, strict=True))  # fmt: skip
    return struct.pack("<I", max(map(len, texts))) + b"".join(records)
