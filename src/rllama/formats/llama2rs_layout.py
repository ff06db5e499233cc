"""What is in a llama2.rs file: the header says too little, so the size has to tell the rest.

The seven numbers are those of llama2.c, but n_kv_heads is always n_heads. Neither the size of a
group is written, nor whether there are groups at all. Files of later versions have an epsilon
behind the numbers and an order of inputs with every matrix.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import prod

from rllama.formats.llama2c_header import Llama2cHeader

_GROUP_SIZES = (8, 16, 32, 64, 128, 256, 512, 1024, 2048)
_MAX_HEADS = 1024
HEADER_BYTES = 28

# Name, shape in letters, and whether there is one for each layer, in file order.
_ARRAYS = (
    ("embed", "VD", False), (".attn_norm", "D", True), (".wq", "DD", True), (".wk", "ED", True),
    (".wv", "ED", True), (".wo", "DD", True), (".ffn_norm", "D", True), (".w_gate", "FD", True),
    (".w_down", "DF", True), (".w_up", "FD", True), ("final_norm", "D", False),
    ("cosines", "SR", False), ("sines", "SR", False), ("lm_head", "VD", False),
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Layout:
    """One reading of a file.

    Units: group_size inputs, 0: matrices of f32
    """

    header: Llama2cHeader
    n_kv_heads: int
    group_size: int
    is_new: bool

    @property
    def start(self) -> int:
        """Where the arrays begin."""
        return HEADER_BYTES + 4 * self.is_new

    def arrays(self) -> Iterator[tuple[str, tuple[int, ...], int]]:
        """Canonical name, shape and offset of every array, in file order."""
        at = self.start
        for name, shape, n in self._stacks():
            for i in range(n):
                yield f"layers.{i}{name}" if name[0] == "." else name, shape, at
                at += self.array_bytes(name, shape)

    def _stacks(self) -> Iterator[tuple[str, tuple[int, ...], int]]:
        """Name, shape and number (1, or one per layer) of the arrays."""
        h, head_dim = self.header, self.header.dim // self.header.n_heads
        letters = {"V": h.vocab_size, "D": h.dim, "F": h.ffn_dim, "S": h.seq_len,
                   "E": self.n_kv_heads * head_dim, "R": head_dim // 2}  # fmt: skip
        for name, spec, per_layer in _ARRAYS:
            yield name, tuple(letters[c] for c in spec), h.n_layers if per_layer else 1

    def is_packed(self, name: str, shape: tuple[int, ...]) -> bool:
        """Whether an array is a matrix of 4-bit groups; those of layers are."""
        return self.group_size > 0 and "." in name and len(shape) == 2

    def parts(self, shape: tuple[int, ...]) -> tuple[tuple[int, ...], ...]:
        """Shapes of words, zeros, scales and order of a packed matrix, 4 bytes for each value."""
        n_out, n_in = shape
        n_groups = -(-n_in // self.group_size)
        words = ((n_out, n_in // 8), (n_out // 8, n_groups), (n_out, n_groups))
        return (*words, (n_in,)) if self.is_new else words

    def array_bytes(self, name: str, shape: tuple[int, ...]) -> int:
        """Bytes of one array."""
        if not self.is_packed(name, shape):
            return 4 * prod(shape)
        return 4 * sum(prod(part) for part in self.parts(shape))

    @property
    def n_bytes(self) -> int:
        """Bytes of the whole file."""
        return self.start + sum(
            n * self.array_bytes(name, shape) for name, shape, n in self._stacks()
        )


def readings(header: Llama2cHeader, n_bytes: int) -> list[Layout]:
    """Every layout that explains the size of a file to the byte.

    Notes:   a file of f32 matrices without an epsilon is one of llama2.c, and read as such
    """
    if header.shared_head or header.dim % 16 or header.ffn_dim % 8 or header.n_heads > _MAX_HEADS:
        return []
    heads = [n for n in range(1, header.n_heads + 1) if header.n_heads % n == 0]
    whole = max(header.dim, header.ffn_dim)  # one group to a row
    sizes = [size for size in _GROUP_SIZES if size < whole]
    found = []
    for n_kv_heads in heads:
        if n_kv_heads * (header.dim // header.n_heads) % 8:
            continue
        for size in (0, *sizes, whole):
            for is_new in (True, False):
                layout = Layout(header, n_kv_heads, size, is_new)
                is_llama2c = size == 0 and not is_new and n_kv_heads == header.n_heads
                if not is_llama2c and layout.n_bytes == n_bytes:
                    found.append(layout)
    return found
