"""What to say about a file that no reader claims."""

from __future__ import annotations

from rllama.formats.files import printable, read_head, stat_path
from rllama.formats.llama2c_header import plausible_size

_BEGINNINGS = (
    (b"tjgg", "an old llama.cpp file ('ggjt'); convert it to GGUF"),
    (b"lmgg", "an old llama.cpp file ('ggml'); convert it to GGUF"),
    (b"fmgg", "an old llama.cpp file ('ggmf'); convert it to GGUF"),
    (b"algg", "an old llama.cpp file ('ggla'); convert it to GGUF"),
    (b"ggjt", "an old llama.cpp file ('ggjt'); convert it to GGUF"),
    (b"ggml", "an old llama.cpp file ('ggml'); convert it to GGUF"),
    (b"FUGG", "a byte-swapped (big-endian) GGUF file; only little-endian ones are read"),
    (b"PK\x05\x06", "an empty zip archive"),
    (b"7z\xbc\xaf", "a 7z archive; unpack it"),
    (b"\x1f\x8b", "packed with gzip; unpack it"),
    (b"}q", "a Python pickle of protocol 0 or 1; load it with torch and torch.save it again"),
    (b"(dp", "a Python pickle of protocol 0 or 1; load it with torch and torch.save it again"),
    (b"version https://git-lfs", "a Git LFS pointer; fetch the file itself"),
    (b"<!DOCTYPE", "a web page, not a model"),
    (b"<html", "a web page, not a model"),
    (b"{", "a text file in JSON, not weights"),
    (b"\x89HDF", "an HDF5 file"),
    (b"\x89PNG", "a picture (PNG)"),
    (b"\xff\xd8\xff", "a picture (JPEG)"),
    (b"%PDF", "a PDF document"),
    *((bytes((8, version, 18)), "an ONNX model, which is not read") for version in range(3, 14)),
)


def known_kind(head: bytes) -> str:
    """What a file is by its first bytes, and what to do about it; "" where they do not tell."""
    return next((kind for beginning, kind in _BEGINNINGS if head.startswith(beginning)), "")


def describe(path: str) -> str:
    """One line: what the file seems to be, and what is wanted instead."""
    where = printable(path)
    size = stat_path(path).st_size
    if size == 0:
        return f"{where}: the file is empty"
    head = read_head(path, 64)
    if kind := known_kind(head):
        return f"{where}: {kind}"
    expected = plausible_size(head)
    if expected is not None:
        return (
            f"{where}: begins like a llama2.c file, which would have {expected} bytes; this one "
            f"has {size}, it is truncated or no such file"
        )
    if head[8:9] == b"{":
        length = int.from_bytes(head[:8], "little")
        return (
            f"{where}: begins like safetensors, but its header length {length} is impossible in a "
            f"file of {size} bytes"
        )
    return (
        f"{where}: no known model file (GGUF, safetensors, torch, llama2.c, llama2.rs); it has "
        f"{size} bytes and begins with {ascii(head[:12])[1:]}"
    )
