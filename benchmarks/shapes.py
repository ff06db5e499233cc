"""The model shapes that are measured, and what a step of each must read and compute."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Shape:
    """Widths of a Llama; names as in docs/architecture.md.

    Notes: `tied` shapes have no separate head, as the checkpoints they are named after
    """

    name: str
    dim: int
    n_layers: int
    n_heads: int
    n_kv_heads: int
    ffn_dim: int
    vocab_size: int
    max_seq_len: int = 2048
    rope_theta: float = 10000.0
    tied: bool = False

    @property
    def head_dim(self) -> int:
        return self.dim // self.n_heads

    @property
    def kv_dim(self) -> int:
        return self.n_kv_heads * self.head_dim

    def layer_matrices(self) -> dict[str, tuple[int, int]]:
        """The [N, K] matrices of one layer under their GGUF names."""
        return {
            "attn_q": (self.dim, self.dim),
            "attn_k": (self.kv_dim, self.dim),
            "attn_v": (self.kv_dim, self.dim),
            "attn_output": (self.dim, self.dim),
            "ffn_gate": (self.ffn_dim, self.dim),
            "ffn_up": (self.ffn_dim, self.dim),
            "ffn_down": (self.dim, self.ffn_dim),
        }

    @property
    def layer_weights(self) -> int:
        """Weights in the matrices of all layers."""
        per_layer: int = sum(n * k for n, k in self.layer_matrices().values())
        return self.n_layers * per_layer

    @property
    def head_weights(self) -> int:
        return self.vocab_size * self.dim

    def step_ops(self, n_tokens: int, n_logit_rows: int) -> int:
        """Multiplications and additions of the matrices of a step."""
        return 2 * (n_tokens * self.layer_weights + n_logit_rows * self.head_weights)


SHAPES: dict[str, Shape] = {
    shape.name: shape
    for shape in (
        Shape("s15m", 288, 6, 6, 6, 768, 32000, tied=True),
        Shape("s110m", 768, 12, 12, 12, 2048, 32000, tied=True),
        Shape("tl1b", 2048, 22, 32, 4, 5632, 32000),
        Shape("l7b", 4096, 32, 32, 32, 11008, 32000),
        Shape("l8b", 4096, 32, 32, 8, 14336, 128256, rope_theta=500000.0),
    )
}


def tensors(shape: Shape) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Name and [N, K] (or [K]) of every tensor of a GGUF of this shape, in file order."""
    yield "token_embd.weight", (shape.vocab_size, shape.dim)
    for layer in range(shape.n_layers):
        yield f"blk.{layer}.attn_norm.weight", (shape.dim,)
        yield f"blk.{layer}.ffn_norm.weight", (shape.dim,)
        for name, matrix in shape.layer_matrices().items():
            yield f"blk.{layer}.{name}.weight", matrix
    yield "output_norm.weight", (shape.dim,)
    if not shape.tied:
        yield "output.weight", (shape.vocab_size, shape.dim)
