"""Write a Meta checkpoint with random weights, and measure how it loads.

`make_meta.py SHAPE [-n SHARDS] [-t TYPE] [--layers N] -o FOLDER` writes params.json and
consolidated.NN.pth; `make_meta.py --load FOLDER` opens the model in this process and prints seconds
and the memory that is no file's. The values are those of `make_model.py`.
"""

from __future__ import annotations

import argparse
import json
import struct
import sys
import time
import zipfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
from make_model import draw
from shapes import SHAPES, Shape

from rllama import LLM, SamplingParams
from rllama.memory import anonymous_bytes

_STORAGE = {"F16": ("HalfStorage", 2), "BF16": ("BFloat16Storage", 2), "F32": ("FloatStorage", 4)}
_CHUNK_VALUES = 1 << 22
_COLUMNS = ("tok_embeddings", "wo", "w2")  # cut along their columns, as Llama 2's are


def shard_tensors(shape: Shape, n_shards: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Names and shapes in one shard."""
    matrices = {"attention.wq": "attn_q", "attention.wk": "attn_k", "attention.wv": "attn_v",
                "attention.wo": "attn_output", "feed_forward.w1": "ffn_gate",
                "feed_forward.w2": "ffn_down", "feed_forward.w3": "ffn_up"}  # fmt: skip
    layer = shape.layer_matrices()
    whole: dict[str, tuple[int, ...]] = {"tok_embeddings": (shape.vocab_size, shape.dim),
                                         "norm": (shape.dim,),
                                         "output": (shape.vocab_size, shape.dim)}  # fmt: skip
    for i in range(shape.n_layers):
        whole |= {f"layers.{i}.{name}": layer[theirs] for name, theirs in matrices.items()}
        whole |= {f"layers.{i}.{name}": (shape.dim,) for name in ("attention_norm", "ffn_norm")}
    for name, dims in whole.items():
        if len(dims) == 2 and name.endswith(_COLUMNS):
            dims = (dims[0], dims[1] // n_shards)
        elif len(dims) == 2:
            dims = (dims[0] // n_shards, dims[1])
        yield f"{name}.weight", dims


def pickled(tensors: list[tuple[str, tuple[int, ...]]], kind: str) -> bytes:
    """data.pkl: a dictionary of tensors, each in a storage of its own."""

    def text(value: str) -> bytes:
        return b"X" + struct.pack("<I", len(value)) + value.encode()

    def whole(*values: int) -> bytes:
        return b"(" + b"".join(b"J" + struct.pack("<i", value) for value in values) + b"t"

    parts = [b"\x80\x02}("]
    for key, (name, dims) in enumerate(tensors):
        strides = (dims[1], 1) if len(dims) == 2 else (1,)
        parts += [text(name), b"ctorch._utils\n_rebuild_tensor_v2\n((", text("storage"),
                  f"ctorch\n{kind}\n".encode(), text(str(key)), text("cpu"),
                  b"J" + struct.pack("<i", int(np.prod(dims))), b"tQK\x00", whole(*dims),
                  whole(*strides), b"\x89ccollections\nOrderedDict\n)RtR"]  # fmt: skip
    return b"".join(parts) + b"u."


def write_shard(path: Path, shape: Shape, n_shards: int, type_name: str, seed: int) -> None:
    """One zip archive, its tensors drawn a few megabytes at a time."""
    rng = np.random.Generator(np.random.SFC64(seed))
    kind, _ = _STORAGE[type_name]
    tensors = list(shard_tensors(shape, n_shards))
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr("consolidated/data.pkl", pickled(tensors, kind))
        for key, (_, dims) in enumerate(tensors):
            with archive.open(f"consolidated/data/{key}", "w", force_zip64=True) as out:
                left = int(np.prod(dims))
                while left:
                    n = min(left, _CHUNK_VALUES)
                    out.write(draw(type_name, rng, n, shape.dim**-0.5).data)
                    left -= n


def write(folder: Path, shape: Shape, n_shards: int, type_name: str) -> None:
    """params.json and the shards."""
    folder.mkdir(parents=True, exist_ok=True)
    numbers = {"dim": shape.dim, "n_layers": shape.n_layers, "n_heads": shape.n_heads,
               "n_kv_heads": shape.n_kv_heads, "vocab_size": -1, "norm_eps": 1e-5,
               "rope_theta": shape.rope_theta}  # fmt: skip
    (folder / "params.json").write_text(json.dumps(numbers))
    for shard in range(n_shards):
        path = folder / f"consolidated.{shard:02d}.pth"
        write_shard(path, shape, n_shards, type_name, shard)


def measure(folder: Path) -> None:
    """Open a model, take a step, print what it cost."""
    before, start = anonymous_bytes() or 0, time.perf_counter()
    with LLM(folder, f16=True) as llm:
        seconds, loaded = time.perf_counter() - start, anonymous_bytes() or 0
        start = time.perf_counter()
        list(llm.generate([1], SamplingParams(temperature=0, max_new_tokens=4)).token_ids)
        step_s, stepped = (time.perf_counter() - start) / 4, anonymous_bytes() or 0
    print(
        f"{folder}: loaded in {seconds:.2f} s; anonymous memory {before / 1e6:.0f} MB before, "
        f"{loaded / 1e6:.0f} MB loaded, {stepped / 1e6:.0f} MB after 4 tokens of {step_s:.2f} s"
    )


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("shape", nargs="?", choices=sorted(SHAPES))
    parser.add_argument("-n", "--shards", type=int, default=2)
    parser.add_argument("-t", "--type", default="F16", choices=sorted(_STORAGE))
    parser.add_argument("--layers", type=int, help="as many layers instead of the shape's own")
    parser.add_argument("-o", "--output", type=Path)
    parser.add_argument("--load", type=Path, metavar="FOLDER")
    options = parser.parse_args(arguments)
    if options.shape and options.output:
        shape = SHAPES[options.shape]
        shape = replace(shape, n_layers=options.layers or shape.n_layers)
        write(options.output, shape, options.shards, options.type)
    if options.load:
        measure(options.load)
    if not (options.shape and options.output) and not options.load:
        parser.error("give a shape and -o FOLDER, or --load FOLDER")


if __name__ == "__main__":
    main(sys.argv[1:])
