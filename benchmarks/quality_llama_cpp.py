"""llama.cpp's part of `compare_quality.py`, run by a Python that has llama_cpp.

    quality_llama_cpp.py quantize SOURCE TARGET KIND
    quality_llama_cpp.py logits MODEL TEXTS.json OUT.npy N_THREADS CACHE

KIND is a type (every matrix has it) or a mixture such as Q4_K_M; CACHE is f16 or f32.
"""

from __future__ import annotations

import ctypes
import json
import sys
from pathlib import Path
from typing import Any

import llama_cpp
import numpy as np

_FLOATS = ("F16", "BF16")


def quantize(source: str, target: str, kind: str) -> None:
    """Write `target` with llama.cpp's quantiser. Raises RuntimeError where it refuses."""
    params = llama_cpp.llama_model_quantize_default_params()
    params.allow_requantize = True
    type_id = getattr(llama_cpp, f"GGML_TYPE_{kind}", None)
    if kind == "F32":
        params.ftype = llama_cpp.LLAMA_FTYPE_ALL_F32
    elif kind in _FLOATS or type_id is None:
        params.ftype = getattr(llama_cpp, f"LLAMA_FTYPE_MOSTLY_{kind}")
    else:
        params.ftype = llama_cpp.LLAMA_FTYPE_MOSTLY_Q4_0  # some block type: what is next decides
        params.tt_overrides = _every_matrix(type_id)
    if llama_cpp.llama_model_quantize(source.encode(), target.encode(), params):
        raise RuntimeError(f"llama.cpp cannot write {kind}")


def _every_matrix(type_id: int) -> Any:
    override = llama_cpp.llama_model_tensor_override
    return (override * 2)(override(b".*", type_id), override(None, 0))


def write_logits(model: str, texts: str, out: str, n_threads: int, cache: str) -> None:
    """The logits after every token of every text, [tokens of all texts, V] f32."""
    rows = json.loads(Path(texts).read_text(encoding="utf-8"))
    kv = llama_cpp.GGML_TYPE_F32 if cache == "f32" else llama_cpp.GGML_TYPE_F16
    longest = max(map(len, rows))
    llama = llama_cpp.Llama(
        model, n_ctx=longest, n_batch=longest, n_ubatch=longest, n_threads=n_threads,
        n_threads_batch=n_threads, type_k=kv, type_v=kv, logits_all=True, verbose=False,
    )  # fmt: skip
    shape = (sum(map(len, rows)), llama.n_vocab())
    logits = np.lib.format.open_memmap(out, mode="w+", dtype=np.float32, shape=shape)
    at = 0
    for ids in rows:
        llama.reset()
        llama.eval(ids)
        logits[at : at + len(ids)] = llama.scores[: len(ids)]
        at += len(ids)
    logits.flush()
    llama.close()


def main() -> int:
    silent = llama_cpp.llama_log_callback(lambda level, text, _: None)
    llama_cpp.llama_log_set(silent, ctypes.c_void_p())
    command, *rest = sys.argv[1:]
    if command == "quantize":
        quantize(*rest)
    else:
        write_logits(*rest[:3], int(rest[3]), rest[4])
    return 0


if __name__ == "__main__":
    sys.exit(main())
