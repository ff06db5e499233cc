"""The small Llama in torch: the same arithmetic as the engine, written to be trained."""

from __future__ import annotations

from dataclasses import asdict, dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

EMBED_STD, MATRIX_STD, HEAD_GAIN = 0.06, 0.03, 0.4


@dataclass(frozen=True)
class Shape:
    """The widths of the model; every width is a multiple of 256 so that all block formats fit."""

    vocab_size: int
    dim: int = 256
    ffn_dim: int = 512
    n_layers: int = 3
    n_heads: int = 8
    max_seq_len: int = 512
    norm_eps: float = 1e-5
    rope_theta: float = 10000.0

    @property
    def head_dim(self) -> int:
        return self.dim // self.n_heads

    def as_dict(self) -> dict[str, int | float]:
        return asdict(self)


def rope_angles(shape: Shape) -> tuple[Tensor, Tensor]:
    """Cosine and sine of every position and pair.

    Shapes:  two of [max_seq_len, head_dim / 2]
    """
    pairs = torch.arange(0, shape.head_dim, 2, dtype=torch.float64)
    rates = shape.rope_theta ** (-pairs / shape.head_dim)
    angles = torch.outer(torch.arange(shape.max_seq_len, dtype=torch.float64), rates)
    return angles.cos().float(), angles.sin().float()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn the interleaved pairs (0,1)(2,3)... of each head, as arch "llama" does in GGUF.

    Shapes:  x [batch, heads, time, head_dim]; cos, sin [time, head_dim / 2]
    """
    even, odd = x[..., 0::2], x[..., 1::2]
    return torch.stack((even * cos - odd * sin, even * sin + odd * cos), dim=-1).flatten(-2)


class RMSNorm(nn.Module):
    """Divide by the root mean square, then scale."""

    def __init__(self, dim: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, (x.shape[-1],), self.weight, self.eps)


class Block(nn.Module):
    """Attention and SwiGLU, each behind its norm and added to the stream."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        dim, ffn = shape.dim, shape.ffn_dim
        self.n_heads = shape.n_heads
        self.attn_norm = RMSNorm(dim, shape.norm_eps)
        self.qkv = nn.Linear(dim, 3 * dim, bias=False)
        self.out = nn.Linear(dim, dim, bias=False)
        self.ffn_norm = RMSNorm(dim, shape.norm_eps)
        self.gate_up = nn.Linear(dim, 2 * ffn, bias=False)
        self.down = nn.Linear(ffn, dim, bias=False)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        batch, time, dim = x.shape
        heads = self.qkv(self.attn_norm(x)).view(batch, time, 3, self.n_heads, -1)
        q, k, v = heads.permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(
            rotate(q, cos, sin).type_as(v), rotate(k, cos, sin).type_as(v), v, is_causal=True
        )
        x = x + self.out(mixed.transpose(1, 2).reshape(batch, time, dim))
        gate, up = self.gate_up(self.ffn_norm(x)).chunk(2, dim=-1)
        return x + self.down(F.silu(gate) * up)


class Llama(nn.Module):
    """Embedding, blocks, norm, and a head tied to the embedding."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        self.embed = nn.Embedding(shape.vocab_size, shape.dim)
        self.blocks = nn.ModuleList(Block(shape) for _ in range(shape.n_layers))
        self.norm = RMSNorm(shape.dim, shape.norm_eps)
        cos, sin = rope_angles(shape)
        self.register_buffer("cos", cos, persistent=False)
        self.register_buffer("sin", sin, persistent=False)
        self._initialise()

    def _initialise(self) -> None:
        # The embedding must outweigh what the untrained blocks add to the stream, or names
        # stay alike for long; the small gain keeps the tied head from repeating its input at first.
        for name, weight in self.named_parameters():
            if weight.dim() < 2:
                continue
            residual = name.endswith(("out.weight", "down.weight"))
            scale = (2 * self.shape.n_layers) ** -0.5 if residual else 1.0
            nn.init.normal_(weight, std=EMBED_STD if "embed" in name else scale * MATRIX_STD)
        nn.init.constant_(self.norm.weight, HEAD_GAIN)

    def forward(self, tokens: Tensor) -> Tensor:
        """Scores of the next token at every position.

        Shapes:  tokens [batch, time] -> [batch, time, vocab_size]
        """
        time = tokens.shape[1]
        cos, sin = self.cos[:time], self.sin[:time]
        x = self.embed(tokens)
        for block in self.blocks:
            x = block(x, cos, sin)
        return F.linear(self.norm(x), self.embed.weight)

    def loss(self, tokens: Tensor) -> Tensor:
        """Mean cross-entropy in nats of tokens[:, 1:] given what precedes."""
        scores = self(tokens[:, :-1])
        return F.cross_entropy(scores.flatten(0, 1).float(), tokens[:, 1:].flatten())
