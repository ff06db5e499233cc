"""The header of a llama2.c file, and which arrays follow it: version 0 has no magic."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from math import prod

from rllama.config import ModelConfig, sizes
from rllama.errors import ConfigError, FormatError, UnsupportedError
from rllama.formats.hparams import build
from rllama.formats.mapped_file import MappedFile

MAGIC = struct.pack("<I", 0x616B3432)
ROTATIONS = "rotations"  # cosines and sines that version 0 stores; we compute our own
_START = 256  # of the arrays, in versions 1 and 2
_NUMBERS = ("dim", "hidden_dim", "n_layers", "n_heads", "n_kv_heads", "vocab_size", "seq_len")

# The arrays in file order: our names, as files have none, and shapes in letters. A name that
# begins with a dot stands for one array per layer, all layers in a row.
_MATRICES = (
    (".wq", "H*d, D"),
    (".wk", "G*d, D"),
    (".wv", "G*d, D"),
    (".wo", "D, H*d"),
)
_FFN_MATRICES = ((".w_gate", "F, D"), (".w_down", "D, F"), (".w_up", "F, D"))  # w1, w2, w3
_VERSION_0 = (
    ("embed", "V, D"),
    (".attn_norm", "D"),
    *_MATRICES,
    (".ffn_norm", "D"),
    *_FFN_MATRICES,
    ("final_norm", "D"),
    (ROTATIONS, "S, d"),
)
_VERSIONS_1_2 = (
    (".attn_norm", "D"),
    (".ffn_norm", "D"),
    ("final_norm", "D"),
    ("embed", "V, D"),
    *_MATRICES,
    *_FFN_MATRICES,
)
_HEAD = ("lm_head", "V, D")


@dataclass(frozen=True, slots=True)
class Llama2cHeader:
    """The seven numbers of a llama2.c header and what its version adds.

    Units: start is the offset of the first array, in bytes
    """

    version: int
    dim: int
    ffn_dim: int
    n_layers: int
    n_heads: int
    n_kv_heads: int
    vocab_size: int
    seq_len: int
    shared_head: bool
    start: int
    group_size: int = 0

    def arrays(self) -> Iterator[tuple[str, tuple[int, ...], int]]:
        """Name, shape and number (1, or one per layer) of the arrays, in file order."""
        letters = {
            "D": self.dim, "F": self.ffn_dim, "H": self.n_heads, "G": self.n_kv_heads,
            "d": self.dim // self.n_heads, "V": self.vocab_size, "S": self.seq_len,
        }  # fmt: skip
        order = _VERSION_0 if self.version == 0 else _VERSIONS_1_2
        for name, spec in order if self.shared_head else (*order, _HEAD):
            yield name, sizes(spec, letters), self.n_layers if name.startswith(".") else 1

    def layout(self) -> Iterator[tuple[str, tuple[int, ...]]]:
        """Canonical name and shape of every array, in file order."""
        for name, shape, count in self.arrays():
            if name.startswith("."):
                for i in range(count):
                    yield f"layers.{i}{name}", shape
            else:
                yield name, shape

    @property
    def n_bytes(self) -> int:
        """Bytes of a file with this header."""
        return self.start + sum(
            self.array_bytes(shape) * count for _, shape, count in self.arrays()
        )

    def array_bytes(self, shape: tuple[int, ...]) -> int:
        """Bytes of one array: f32; matrices of version 2 are bytes, then an f32 per group."""
        n_values = prod(shape)
        if self.version == 2 and len(shape) == 2:
            return n_values + 4 * (n_values // self.group_size)
        return 4 * n_values


def plausible(head: bytes) -> Llama2cHeader | None:
    """What the first 28 bytes say if they are a version 0 header; None if they cannot be."""
    if len(head) < 28:
        return None
    numbers = struct.unpack("<7i", head[:28])
    dim, _, n_layers, n_heads, n_kv_heads, vocab, _ = numbers
    if min(*numbers[:5], numbers[6], abs(vocab)) <= 0 or vocab == -(2**31):
        return None
    if dim % n_heads or n_heads % n_kv_heads or n_layers > 4096 or max(numbers) >= 2**24:
        return None
    return _legacy(numbers)


def _make(
    version: int, numbers: tuple[int, ...], *, shared: bool, start: int, group_size: int = 0
) -> Llama2cHeader:
    dim, ffn_dim, n_layers, n_heads, n_kv_heads, vocab, seq_len = numbers
    return Llama2cHeader(
        version, dim, ffn_dim, n_layers, n_heads, n_kv_heads, abs(vocab), seq_len,
        shared_head=shared, start=start, group_size=group_size,
    )  # fmt: skip


def _legacy(numbers: tuple[int, ...]) -> Llama2cHeader:
    return _make(0, numbers, shared=numbers[5] > 0, start=28)


def read_header(file: MappedFile) -> Llama2cHeader:
    """The header of a file. Raises FormatError, UnsupportedError."""
    if file.read(0, 4, "magic") != MAGIC:
        numbers = file.unpack("<7i", 0, "header")
        _check_numbers(file, numbers, 0)
        return _legacy(numbers)
    (version,) = file.unpack("<i", 4, "version")
    if version not in (1, 2):
        raise UnsupportedError(
            f"{file.where}: llama2.c version {version} at offset 4 is not supported; 0, 1 and 2 are"
        )
    file.require(0, _START, "header")
    numbers = file.unpack("<7i", 8, "header")
    _check_numbers(file, numbers, 8)
    if numbers[5] < 0:
        raise FormatError(f"{file.where}: vocab_size {numbers[5]} at offset 28 is negative")
    shared, group_size = file.unpack("<Bi", 36, "header")
    if shared > 1:
        raise FormatError(f"{file.where}: the flag at offset 36 is {shared}, not 0 or 1")
    if version == 1:
        return _make(1, numbers, shared=shared == 1, start=_START)
    if group_size < 1 or numbers[0] % group_size:
        raise FormatError(
            f"{file.where}: group size {group_size} at offset 37 does not divide dim {numbers[0]}"
        )
    return _make(2, numbers, shared=shared == 1, start=_START, group_size=group_size)


def _check_numbers(file: MappedFile, numbers: tuple[int, ...], start: int) -> None:
    for index, (name, value) in enumerate(zip(_NUMBERS, numbers, strict=True)):
        low = -(2**31) + 1 if name == "vocab_size" else 1
        if value < low or value == 0:
            raise FormatError(f"{file.where}: {name} at offset {start + 4 * index} is {value}")


def plausible_size(head: bytes) -> int | None:
    """The size that a version 0 file with this header should have; None if it is no header."""
    header = plausible(head)
    return None if header is None else header.n_bytes


def check_size(file: MappedFile, header: Llama2cHeader) -> None:
    """Raises FormatError unless the file has the size that its header implies."""
    want = header.n_bytes
    if want != file.n_bytes:
        raise FormatError(
            f"{file.where}: a llama2.c version {header.version} header with these numbers needs a "
            f"file of {want} bytes, not {file.n_bytes}; it is truncated or no such file"
        )


def llama2c_config(header: Llama2cHeader, where: str, name: str) -> ModelConfig:
    """Translate a llama2.c header. Raises ConfigError.

    Notes:   the files' own runner stops at 1 (BOS, which separates stories) as well as at 2
    """
    if header.dim % header.n_heads or header.n_heads % header.n_kv_heads:
        raise ConfigError(
            f"{where}: dim {header.dim}, n_heads {header.n_heads}, n_kv_heads {header.n_kv_heads} "
            "at offset 0: each must be a multiple of the next"
        )
    return build(
        where, arch="llama", dim=header.dim, ffn_dim=header.ffn_dim, n_layers=header.n_layers,
        n_heads=header.n_heads, n_kv_heads=header.n_kv_heads,
        head_dim=header.dim // header.n_heads, vocab_size=header.vocab_size,
        max_seq_len=header.seq_len, norm_eps=1e-5, rope_theta=10000.0, rope_style="interleaved",
        tied_head=header.shared_head, bos_token_id=1 if header.vocab_size > 1 else None,
        eos_token_ids=tuple(i for i in (1, 2) if i < header.vocab_size), add_bos=True, name=name,
    )  # fmt: skip
