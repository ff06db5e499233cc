"""The plain data that floors hand to each other: model, engine, sampling, tokenizer source."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any, Literal, get_args

from rllama.errors import ConfigError

RopeStyle = Literal["interleaved", "half"]
RopeScalingKind = Literal["linear", "dynamic", "yarn", "llama3", "longrope"]
Activation = Literal["silu", "gelu", "gelu_tanh", "swiglu_clamped"]
KVDType = Literal["auto", "f32", "f16", "q8_0"]


def sizes(spec: str, letters: Mapping[str, int]) -> tuple[int, ...]:
    """The shape that a spec in letters stands for: "H*d + G*d, D" has H*d and G*d rows.

    Raises:  ConfigError for a letter that there is not
    """
    try:
        return tuple(
            sum(math.prod(letters[letter.strip()] for letter in term.split("*"))
                for term in axis.split("+"))
            for axis in spec.split(",")
        )  # fmt: skip
    except KeyError as error:
        raise ConfigError(f"shape {spec!r}: no such letter: {error}; there are {' '.join(letters)}"
                          ) from None  # fmt: skip


def _require(ok: bool, message: str) -> None:
    if not ok:
        raise ConfigError(message)


@dataclass(frozen=True, slots=True)
class GenerationDefaults:
    """What a model's own files say about sampling; None where they say nothing."""

    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None


@dataclass(frozen=True, slots=True)
class RopeScaling:
    """How rotations are stretched beyond the context that a model was first trained for.

    Units:   original_max_seq_len in tokens, factors without unit
    Notes:   each kind uses the fields of its paper or of its config.json; attn_factor multiplies
             cosines and sines, None lets the kind compute it; "dynamic" and "longrope" are settled
             for the context that the engine is opened with, so that a token's rotation never
             depends on what else is in the step; queries are multiplied by
             1 + query_growth * ln(1 + position // original_max_seq_len)
    """

    kind: RopeScalingKind
    factor: float = 1.0
    original_max_seq_len: int = 0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    truncate: bool = True
    attn_factor: float | None = None
    mscale: float = 0.0
    mscale_all_dim: float = 0.0
    short_factors: tuple[float, ...] = ()
    long_factors: tuple[float, ...] = ()
    query_growth: float = 0.0


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """The numbers of a Llama-family model, in our names (docs/architecture.md has the others').

    Units:   widths and counts; max_seq_len in tokens
    Notes:   rope_style "interleaved" pairs (0,1)(2,3)…, "half" pairs (0,d/2)(1,d/2+1)…;
             it follows from the file family, weights are never permuted; n_rotated 0 is the whole
             head; local_rope_theta is the unscaled base of the layers with a window;
             windows has one entry per layer (0: every position) or is empty; attn_scale None is
             1/sqrt(d); caps are 0 where there is none; logits are multiplied by logit_scale, norm
             weights raised by norm_offset; activation is that of the feed-forward's gate;
             normalise_experts: the weights of the chosen experts add up to 1
    Raises:  ConfigError where the numbers contradict each other
    """

    arch: str
    dim: int
    ffn_dim: int
    n_layers: int
    n_heads: int
    n_kv_heads: int
    head_dim: int
    vocab_size: int
    max_seq_len: int
    norm_eps: float = 1e-5
    rope_theta: float = 10000.0
    rope_style: RopeStyle = "half"
    rope_scaling: RopeScaling | None = None
    n_rotated: int = 0
    local_rope_theta: float | None = None
    unrotated_layers: tuple[int, ...] = ()
    windows: tuple[int, ...] = ()
    attn_scale: float | None = None
    attn_softcap: float = 0.0
    logit_softcap: float = 0.0
    embed_scale: float = 1.0
    residual_scale: float = 1.0
    logit_scale: float = 1.0
    norm_offset: float = 0.0
    activation: Activation = "silu"
    n_experts: int = 0
    n_experts_used: int = 0
    expert_ffn_dim: int = 0
    normalise_experts: bool = True
    tied_head: bool = False
    bos_token_id: int | None = None
    eos_token_ids: tuple[int, ...] = ()
    add_bos: bool | None = None
    name: str = ""
    generation: GenerationDefaults = field(default_factory=GenerationDefaults)

    def __post_init__(self) -> None:
        for f in ("dim", "ffn_dim", "n_layers", "n_heads", "n_kv_heads", "head_dim", "vocab_size",
                  "max_seq_len"):  # fmt: skip
            value = getattr(self, f)
            _require(type(value) is int and 0 < value < 2**31,
                     f"{f} must be a whole number between 1 and 2^31, not {value!r}")  # fmt: skip
        _require(self.n_layers <= 4096, f"n_layers {self.n_layers} is beyond any model (4096)")
        _require(
            self.n_heads % self.n_kv_heads == 0,
            f"n_heads {self.n_heads} is not a multiple of n_kv_heads {self.n_kv_heads}",
        )
        _require(self.head_dim % 2 == 0, f"head_dim {self.head_dim} must be even")
        _require(self.head_dim <= 1024, f"head_dim {self.head_dim} is beyond the kernels' 1024")
        _require(math.isfinite(self.norm_eps) and 0 < self.norm_eps < 1,
                 f"norm_eps must lie between 0 and 1, not {self.norm_eps}")  # fmt: skip
        _require(math.isfinite(self.rope_theta) and self.rope_theta > 0,
                 f"rope_theta must be a positive number, not {self.rope_theta}")  # fmt: skip
        self._check_kin()
        for token_id in (self.bos_token_id, *self.eos_token_ids):
            _require(token_id is None or 0 <= token_id < self.vocab_size,
                     f"special token id {token_id} is outside the vocabulary of "
                     f"{self.vocab_size}")  # fmt: skip

    def _check_kin(self) -> None:
        """The numbers that only some families have."""
        n = self.n_rotated or self.head_dim
        _require(0 < n <= self.head_dim and n % 2 == 0,
                 f"n_rotated {n} must be even and at most the head's {self.head_dim}")  # fmt: skip
        _require(len(self.windows) in (0, self.n_layers)
                 and all(type(w) is int and 0 <= w < 2**31 for w in self.windows),
                 f"windows must have a number for each of {self.n_layers} layers")  # fmt: skip
        self._check_experts()
        for name in ("embed_scale", "residual_scale", "logit_scale", "attn_scale"):
            value = getattr(self, name)
            _require(value is None or 1e-9 < abs(value) < 1e9, f"{name} {value} is beyond any use")
        scaling = self.rope_scaling
        if scaling is None:
            return
        _require(1e-6 < scaling.factor < 1e6, f"a rope_scaling factor of {scaling.factor}")
        _require(scaling.kind == "linear" or scaling.original_max_seq_len > 0,
                 f"rope_scaling {scaling.kind!r} needs its original_max_seq_len")  # fmt: skip
        _require(scaling.kind != "dynamic" or n > 2, f"too few pairs turn for {scaling.kind!r}")
        _require(scaling.kind != "yarn" or self.rope_theta > 1, "yarn needs a rope_theta above 1")
        if scaling.kind == "longrope":
            for factors in (scaling.short_factors, scaling.long_factors):
                _require(len(factors) == n // 2, f"longrope needs a factor for {n // 2} pairs")

    def _check_experts(self) -> None:
        n = self.n_experts
        if n:
            _require(0 < n <= 1024, f"n_experts {n} is beyond any model (1024)")
            _require(0 < self.n_experts_used <= n, f"{self.n_experts_used} of {n} experts used")
            _require(0 < self.expert_ffn_dim < 2**31, "expert_ffn_dim must be at least 1")

    def window(self, layer: int) -> int:
        """How many positions a token of a layer sees, its own among them; 0 is all of them."""
        return self.windows[layer] if self.windows else 0

    @property
    def shape_letters(self) -> dict[str, int]:
        """The letters of docs/architecture.md: D F H G d V L, and E X of experts."""
        return {"D": self.dim, "F": self.ffn_dim, "H": self.n_heads, "G": self.n_kv_heads,
                "d": self.head_dim, "V": self.vocab_size, "L": self.n_layers,
                "E": self.n_experts, "X": self.expert_ffn_dim}  # fmt: skip

    def sizes(self, spec: str) -> tuple[int, ...]:
        """The shape that a spec in letters ("H*d, D") has in this model."""
        return sizes(spec, self.shape_letters)


@dataclass(frozen=True, slots=True)
class EngineConfig:
    """How the engine batches and what it may hold.

    Units:   max_batch_tokens tokens per step (also the prefill chunk); page_len positions;
             n_pages pages of the cache, shared by all sequences
    Notes:   0 pages or positions: as many as the memory plan gives
    Raises:  ConfigError for a cache type that there is not
    """

    max_batch_tokens: int = 512
    max_seqs: int = 64
    max_waiting: int = 4096
    page_len: int = 64
    n_pages: int = 0
    max_seq_len: int = 0
    kv_dtype: KVDType = "auto"
    share_prefixes: bool = True

    def __post_init__(self) -> None:
        kinds = get_args(KVDType)
        _require(
            self.kv_dtype in kinds,
            f"kv_dtype must be one of {', '.join(kinds)}, not {self.kv_dtype!r}",
        )


def _field(default: Any, help_text: str) -> Any:
    return field(default=default, metadata={"help": help_text})


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How the next token is chosen. None means unset: the model's own default, then RLLaMA's.

    Notes:   order: penalty, temperature, top-k, top-p, min-p, draw. temperature 0 is greedy.
    Raises:  ConfigError if a value is out of range
    """

    temperature: float | None = _field(None, "randomness; 0 always takes the likeliest token")
    top_k: int | None = _field(None, "keep the k likeliest tokens; 0 keeps all")
    top_p: float | None = _field(None, "keep the likeliest tokens up to this total probability")
    min_p: float | None = _field(None, "drop tokens below this share of the likeliest one")
    repetition_penalty: float | None = _field(None, "above 1 discourages tokens already present")
    seed: int | None = _field(None, "same seed, same text")
    stop: tuple[str, ...] | None = _field(None, "texts that end the output; they are cut off")
    stop_token_ids: tuple[int, ...] | None = _field(None, "token ids that end the output")
    ignore_eos: bool | None = _field(None, "go on after the end-of-sequence token")
    max_new_tokens: int | None = _field(None, "at most this many new tokens")
    logprobs: int | None = _field(None, "also return this many likeliest tokens per position")

    def __post_init__(self) -> None:
        if isinstance(self.stop, str):
            object.__setattr__(self, "stop", (self.stop,))
        for name in ("stop", "stop_token_ids"):
            value = getattr(self, name)
            if value is not None:
                object.__setattr__(self, name, tuple(value))
        self._check_numbers()
        self._check_stops()

    def _check_numbers(self) -> None:
        _check_float("temperature", self.temperature, 0.0, 1000.0)
        _check_float("top_p", self.top_p, 0.0, 1.0, low_open=True)
        _check_float("min_p", self.min_p, 0.0, 1.0)
        _check_float("repetition_penalty", self.repetition_penalty, 0.0, 1000.0, low_open=True)
        _check_int("top_k", self.top_k, 0, 2**31 - 1)
        _check_int("seed", self.seed, 0, 2**64 - 1)
        _check_int("max_new_tokens", self.max_new_tokens, 0, 2**31 - 1)
        _check_int("logprobs", self.logprobs, 0, 100)

    def _check_stops(self) -> None:
        for text in self.stop or ():
            _require(isinstance(text, str) and text != "", "stop texts must be non-empty strings")
        for token_id in self.stop_token_ids or ():
            _check_int("stop_token_ids", token_id, 0, 2**31 - 1)

    def resolved(self, model: GenerationDefaults) -> ResolvedSampling:
        """Fill what is unset from the model's defaults, then from RLLaMA's."""

        def pick(name: str, default: Any) -> Any:
            own = getattr(self, name)
            if own is None:
                own = getattr(model, name, None)
            return default if own is None else own

        return ResolvedSampling(
            temperature=float(pick("temperature", 1.0)), top_k=int(pick("top_k", 20)),
            top_p=float(pick("top_p", 1.0)), min_p=float(pick("min_p", 0.0)),
            repetition_penalty=float(pick("repetition_penalty", 1.0)),
            seed=self.seed, stop=self.stop or (), stop_token_ids=self.stop_token_ids or (),
            ignore_eos=bool(self.ignore_eos), max_new_tokens=self.max_new_tokens,
            logprobs=self.logprobs,
        )  # fmt: skip

    def with_(self, **changes: Any) -> SamplingParams:
        """A copy with some fields changed."""
        return replace(self, **changes)


@dataclass(frozen=True, slots=True)
class ResolvedSampling:
    """SamplingParams with every default filled in; what the engine works with.

    Notes: seed None draws a fresh one when the request is submitted
    """

    temperature: float
    top_k: int
    top_p: float
    min_p: float
    repetition_penalty: float
    seed: int | None
    stop: tuple[str, ...]
    stop_token_ids: tuple[int, ...]
    ignore_eos: bool
    max_new_tokens: int | None
    logprobs: int | None


def _check_float(
    name: str, value: object, low: float, high: float, *, low_open: bool = False
) -> None:
    if value is None:
        return
    ok = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    ok = ok and low <= value <= high and not (low_open and value == low)  # type: ignore[operator]
    bracket = "above" if low_open else "from"
    _require(ok, f"{name} must be a number {bracket} {low:g} to {high:g}, not {value!r}")


def _check_int(name: str, value: object, low: int, high: int) -> None:
    if value is None:
        return
    ok = isinstance(value, int) and not isinstance(value, bool) and low <= value <= high
    _require(ok, f"{name} must be a whole number from {low} to {high}, not {value!r}")


@dataclass(frozen=True, slots=True, eq=False)
class TokenizerSource:
    """What a file says about a tokenizer, as plain data.

    Notes:   kind "spm" and "tiktoken": `model` is the file, byte for byte; "vocab" and "unigram":
             SentencePiece's pieces, scores and types, of a GGUF or a tokenizer.bin; "bpe":
             byte-level pieces, types and merges of a GGUF; types are SentencePiece's: 1 normal
             2 unknown 3 control 4 user-defined 5 unused 6 byte, none at all are guessed; "json":
             `fields` are those of tokenizer.json, `settings` those of the files beside it;
             `path` is for messages; vocab_size is the model's, None: as many as there are pieces
    """

    kind: Literal["spm", "vocab", "unigram", "bpe", "tiktoken", "json"]
    path: str | None = None
    model: bytes = field(default=b"", repr=False)
    pieces: tuple[str, ...] = ()
    scores: tuple[float, ...] = ()
    types: tuple[int, ...] = ()
    merges: tuple[str, ...] = ()
    pre: str = ""
    charsmap: bytes = field(default=b"", repr=False)
    fields: Mapping[str, object] = field(default_factory=dict, repr=False)
    settings: Mapping[str, object] = field(default_factory=dict, repr=False)
    bos_token_id: int | None = None
    eos_token_id: int | None = None
    unk_token_id: int | None = None
    add_bos: bool | None = None
    add_space_prefix: bool = True
    remove_extra_whitespaces: bool = False
    vocab_size: int | None = None


def field_help(cls: type) -> dict[str, str]:
    """The help text of each field of a dataclass, for `--help` and the docs."""
    return {f.name: str(f.metadata.get("help", "")) for f in fields(cls)}
