"""Write a GGUF with random weights: `make_model.py SHAPE TYPE [-o PATH]`.

The values are noise of the right size (about N(0, 1/K), norms 1), so activations stay sane and
every step costs what it costs with trained weights. Blocks are drawn directly in the layout of the
type, a chunk at a time: no float copy of the model ever exists.
"""

from __future__ import annotations

import argparse
import os
import struct
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from common import bench_dir
from mixes import NAMES, Mix, mix_for
from numpy.typing import NDArray
from shapes import SHAPES, Shape, tensors

from rllama.dtypes import DType
from rllama.errors import UnsupportedError
from rllama.quant.noise import random_blocks

Bytes = NDArray[np.uint8]
Draw = Callable[[np.random.Generator, int, float], Bytes]

_ALIGN = 32
_CHUNK_VALUES = 1 << 22
_KINDS = {int: 4, float: 6, str: 8}  # GGUF value types: u32, f32, string
_I32, _ARRAY = 5, 9


def _floats(rng: np.random.Generator, n: int, std: float) -> NDArray[np.float32]:
    values = rng.random(n, dtype=np.float32)
    values -= np.float32(0.5)
    values *= np.float32(std * 12**0.5)
    return values


def _draw_f32(rng: np.random.Generator, n: int, std: float) -> Bytes:
    return _floats(rng, n, std).view(np.uint8)


def _draw_f16(rng: np.random.Generator, n: int, std: float) -> Bytes:
    return _floats(rng, n, std).astype(np.float16).view(np.uint8)


def _draw_bf16(rng: np.random.Generator, n: int, std: float) -> Bytes:
    bits = _floats(rng, n, std).view(np.uint32) >> 16
    return bits.astype(np.uint16).view(np.uint8)


def _scales(rng: np.random.Generator, n: int, scale: float) -> NDArray[np.float16]:
    """Scales within a quarter of `scale`, of either sign so that no block offset adds up."""
    sizes = scale * (0.75 + 0.5 * rng.random(n, dtype=np.float32))
    signs = rng.integers(0, 2, n, dtype=np.int8) * 2 - 1
    return (sizes * signs).astype(np.float16)


def _draw_q8_0(rng: np.random.Generator, n: int, std: float) -> Bytes:
    blocks = np.empty(n // 32, dtype=[("d", "<f2"), ("q", "i1", 32)])
    blocks["d"] = _scales(rng, n // 32, std / 73.3)  # rms of a uniform -127..127
    blocks["q"] = rng.integers(-127, 128, (n // 32, 32), dtype=np.int8)
    return blocks.view(np.uint8)


def _draw_q4_0(rng: np.random.Generator, n: int, std: float) -> Bytes:
    blocks = np.empty(n // 32, dtype=[("d", "<f2"), ("q", "u1", 16)])
    blocks["d"] = _scales(rng, n // 32, std / 4.64)  # rms of a uniform -8..7
    blocks["q"] = rng.integers(0, 256, (n // 32, 16), dtype=np.uint8)
    return blocks.view(np.uint8)


# Types that are drawn often have functions of their own, which are faster than the general one.
DRAW: dict[str, Draw] = {
    "F32": _draw_f32,
    "F16": _draw_f16,
    "BF16": _draw_bf16,
    "Q8_0": _draw_q8_0,
    "Q4_0": _draw_q4_0,
}


def draw(name: str, rng: np.random.Generator, n: int, std: float) -> Bytes:
    """n values of a type, as bytes."""
    own = DRAW.get(name)
    return random_blocks(name, rng, n, std) if own is None else own(rng, n, std)


def vocabulary(size: int) -> tuple[list[str], list[float], list[int]]:
    """A SentencePiece vocabulary of made-up pieces: 3 specials, 256 bytes, then `w0`, `w1`, …"""
    pieces = ["<unk>", "<s>", "</s>"] + [f"<0x{byte:02X}>" for byte in range(256)]
    types = [2, 3, 3] + [6] * 256
    n_words = size - len(pieces)
    pieces += ["▁"] + [f"▁w{i}" for i in range(n_words - 1)]
    types += [1] * n_words
    scores = [0.0] * 259 + [-float(i) for i in range(n_words)]
    return pieces, scores, types


def metadata(shape: Shape, mix: Mix) -> dict[str, Any]:
    """The key-value pairs that readers of architecture `llama` want."""
    pieces, scores, types = vocabulary(shape.vocab_size)
    return {
        "general.architecture": "llama",
        "general.name": f"random {shape.name} {mix.name}",
        "general.alignment": _ALIGN,
        "llama.context_length": shape.max_seq_len,
        "llama.embedding_length": shape.dim,
        "llama.block_count": shape.n_layers,
        "llama.feed_forward_length": shape.ffn_dim,
        "llama.attention.head_count": shape.n_heads,
        "llama.attention.head_count_kv": shape.n_kv_heads,
        "llama.attention.layer_norm_rms_epsilon": 1e-5,
        "llama.rope.dimension_count": shape.head_dim,
        "llama.rope.freq_base": shape.rope_theta,
        "llama.vocab_size": shape.vocab_size,
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": pieces,
        "tokenizer.ggml.scores": scores,
        "tokenizer.ggml.token_type": types,
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.unknown_token_id": 0,
    }


def _string(text: str) -> bytes:
    data = text.encode("utf-8")
    return struct.pack("<Q", len(data)) + data


def _value(value: Any) -> bytes:
    """A typed GGUF value; integers in lists are i32, alone u32."""
    if isinstance(value, list):
        kind = type(value[0])
        head = struct.pack("<IIQ", _ARRAY, _I32 if kind is int else _KINDS[kind], len(value))
        if kind is str:
            return head + b"".join(map(_string, value))
        return head + np.asarray(value, dtype="<i4" if kind is int else "<f4").tobytes()
    head = struct.pack("<I", _KINDS[type(value)])
    if isinstance(value, str):
        return head + _string(value)
    return head + struct.pack("<I" if isinstance(value, int) else "<f", value)


def header(shape: Shape, mix: Mix) -> bytes:
    """Everything before the tensor data, padded to the alignment."""
    pairs = metadata(shape, mix)
    listed = list(tensors(shape))
    parts = [b"GGUF", struct.pack("<IQQ", 3, len(listed), len(pairs))]
    parts += [_string(key) + _value(value) for key, value in pairs.items()]
    offset = 0
    for name, dims in listed:
        own = mix.dtype_of(shape, name)
        parts.append(_string(name) + struct.pack("<I", len(dims)))
        parts.append(struct.pack(f"<{len(dims)}Q", *reversed(dims)))
        parts.append(struct.pack("<IQ", own.gguf_id, offset))
        offset += -(-own.n_bytes(dims) // _ALIGN) * _ALIGN
    data = b"".join(parts)
    return data + bytes(-len(data) % _ALIGN)


def tensor_chunks(
    dims: tuple[int, ...], dtype: DType, rng: np.random.Generator
) -> Iterator[memoryview]:
    """The bytes of one tensor, padding included, a few megabytes at a time."""
    if len(dims) == 1:
        data = np.ones(dims, dtype="<f4").tobytes()
        yield memoryview(data + bytes(-len(data) % _ALIGN))
        return
    n_rows, width = dims
    rows_at_once = max(1, _CHUNK_VALUES // width)
    for row in range(0, n_rows, rows_at_once):
        n_values = min(rows_at_once, n_rows - row) * width
        yield draw(dtype.name, rng, n_values, width**-0.5).data
    yield memoryview(bytes(-dtype.n_bytes(dims) % _ALIGN))


def write_model(out: BinaryIO, shape: Shape, mix: Mix, seed: int) -> None:
    """Write the whole file."""
    rng = np.random.Generator(np.random.SFC64(seed))
    out.write(header(shape, mix))
    for name, dims in tensors(shape):
        for chunk in tensor_chunks(dims, mix.dtype_of(shape, name), rng):
            out.write(chunk)


def model_path(shape_name: str, type_name: str, *, seed: int = 1) -> Path:
    """The model of this shape and type in the benchmark folder, made now if it is missing."""
    shape = SHAPES[shape_name]
    mix = mix_for(shape, type_name)
    path = bench_dir() / f"{shape.name}-{mix.name.lower()}-{seed}.gguf"
    if not path.exists():
        make(path, shape, mix, seed)
    return path


def make(path: Path, shape: Shape, mix: Mix, seed: int) -> None:
    """Write to a temporary name first: a half-written model must never be measured."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    with partial.open("wb") as out:
        write_model(out, shape, mix, seed)
        forget_cached(out)
    partial.replace(path)


def forget_cached(out: BinaryIO) -> None:
    """Let the first who loads it read the file from the disk, as after a restart.

    Notes:   pages that were written one by one stay small in the cache, for everybody; then a
             mapped file is read at half the speed of memory, by any engine
    """
    out.flush()
    if hasattr(os, "posix_fadvise"):
        os.fsync(out.fileno())
        os.posix_fadvise(out.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("shape", choices=SHAPES)
    parser.add_argument("type", help=", ".join(NAMES))
    parser.add_argument("-o", "--output", type=Path, help="default: the benchmark folder")
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    shape = SHAPES[args.shape]
    try:
        mix = mix_for(shape, args.type)
    except UnsupportedError as error:
        print(f"make_model: {error}", file=sys.stderr)
        return 1
    name = f"{shape.name}-{mix.name.lower()}-{args.seed}.gguf"
    path = args.output or bench_dir() / name
    start = time.perf_counter()
    make(path, shape, mix, args.seed)
    seconds = time.perf_counter() - start
    print(f"{path}: {path.stat().st_size / 1e9:.2f} GB in {seconds:.1f} s", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
