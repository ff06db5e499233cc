"""What a GGUF leaves unsaid: facts of an architecture that llama.cpp keeps in its code."""

from __future__ import annotations

from dataclasses import dataclass, field

from rllama.config import Activation, RopeStyle


@dataclass(frozen=True, slots=True)
class GgufFamily:
    """The unwritten facts of one architecture.

    Notes:   has_windows: a sliding window in the file counts; of `window_every` layers the last
             sees everything (0: none does); `window` stands in for an absent one; local_theta: the
             base of the layers with a window, 0 the same base but never scaled, None the same
             rotation; truncates_yarn: where its ramp begins and ends is rounded to whole pairs;
             every nth layer does not turn; turns_wide_layers: those that see everything turn too
             where others have a window; turns_if_finetuned: a rotation that the file calls not
             finetuned is none; scales_embedding: by the root of its width;
             wide_scale: depths at which scores are scaled by dim/n_heads instead of the head's
             width
    Source:  llama.cpp, src/models/*.cpp and llama_model_rope_type
    """

    rope_style: RopeStyle = "half"
    activation: Activation = "silu"
    has_windows: bool = False
    window: int = 0
    window_every: int = 0
    local_theta: float | None = None
    unrotated_every: int = 0
    turns_wide_layers: bool = True
    turns_if_finetuned: bool = False
    scales_embedding: bool = False
    truncates_yarn: bool = True
    wide_scale: frozenset[int] = field(default_factory=frozenset)


FAMILIES: dict[str, GgufFamily] = {
    "llama": GgufFamily("interleaved", has_windows=True),
    "mistral3": GgufFamily("interleaved", has_windows=True),
    "granite": GgufFamily("interleaved", turns_if_finetuned=True),
    "smollm3": GgufFamily("interleaved", unrotated_every=4),
    "qwen2": GgufFamily(),
    "qwen3": GgufFamily(),
    "phi3": GgufFamily(has_windows=True),
    "olmo2": GgufFamily(has_windows=True, window_every=4, local_theta=0.0),
    "qwen3moe": GgufFamily(),
    "gpt-oss": GgufFamily(activation="swiglu_clamped", has_windows=True, window_every=2,
                          truncates_yarn=False),
    "exaone4": GgufFamily(has_windows=True, window_every=4, turns_wide_layers=False),
    "seed_oss": GgufFamily(),
    "glm4": GgufFamily("interleaved"),
    "ernie4_5": GgufFamily("interleaved"),
    "gemma": GgufFamily(activation="gelu_tanh", scales_embedding=True),
    "gemma2": GgufFamily(
        activation="gelu_tanh", has_windows=True, window=4096, window_every=2,
        scales_embedding=True, wide_scale=frozenset({46}),
    ),
    "gemma3": GgufFamily(
        activation="gelu_tanh", has_windows=True, window_every=6, local_theta=10000.0,
        scales_embedding=True, wide_scale=frozenset({62}),
    ),
}  # fmt: skip


def gguf_family(arch: str) -> GgufFamily:
    """The row of an architecture; that of "llama" where there is none."""
    return FAMILIES.get(arch, FAMILIES["llama"])
