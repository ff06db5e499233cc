"""How byte-level vocabularies spell bytes: every byte is one printable character.

Source: the vocabulary of GPT-2; bytes that print stand for themselves, the others follow at U+0100
"""

from __future__ import annotations

_PRINTING = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
_OTHERS = [byte for byte in range(256) if byte not in _PRINTING]
_CHAR_OF = {byte: byte for byte in _PRINTING} | {b: 256 + i for i, b in enumerate(_OTHERS)}
_BYTE_OF = {char: byte for byte, char in _CHAR_OF.items()}


def byte_name(data: bytes) -> str:
    """The name of a run of bytes."""
    return data.decode("latin-1").translate(_CHAR_OF)


def named_bytes(name: str) -> bytes:
    """The bytes that a name stands for; what is no such name stands for itself."""
    try:
        return bytes(map(_BYTE_OF.__getitem__, map(ord, name)))
    except KeyError:
        return name.encode()


ALPHABET = frozenset(map(chr, _BYTE_OF))
