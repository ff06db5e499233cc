"""Checks the compiled normalisation table of a SentencePiece model."""

from __future__ import annotations

from rllama.errors import FormatError


def check_charsmap(blob: bytes, where: str) -> None:
    """Walk every unit of a normaliser's trie, so that no lookup can leave the blob.

    Notes:   u32 trie size, the trie as u32 units (darts-clone), then NUL-ended replacements
    Raises:  FormatError if a child or a replacement lies outside
    """
    import numpy as np

    trie_bytes = int.from_bytes(blob[:4], "little")
    texts = blob[4 + trie_bytes :]
    if len(blob) < 8 or trie_bytes < 4 or trie_bytes % 4 or not texts or texts[-1]:
        raise FormatError(f"{where}: precompiled_charsmap of {len(blob)} bytes is cut or damaged")
    units = np.frombuffer(blob, "<u4", trie_bytes // 4, 4).astype(np.int64)
    inner = np.flatnonzero(units < 2**31)
    offset = (units[inner] >> 10) << ((units[inner] & 0x200) >> 6)
    child = inner ^ offset
    if ((child | 0xFF) >= units.size).any():
        raise FormatError(f"{where}: precompiled_charsmap points outside its trie")
    with_value = child[(units[inner] & 0x100) != 0]
    if ((units[with_value] & 0x7FFFFFFF) >= len(texts)).any():
        raise FormatError(f"{where}: precompiled_charsmap points outside its replacements")
