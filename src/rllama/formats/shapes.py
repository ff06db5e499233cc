"""The tensors of a Llama model, in the letters of its config, and the one check against them."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from math import prod

from rllama.config import ModelConfig
from rllama.errors import ConfigError, UnsupportedError
from rllama.formats.files import printable
from rllama.formats.names import Table, canonical, in_file, layer_index
from rllama.tensor import TensorView

log = logging.getLogger(__name__)

LAYER_SHAPES: dict[str, str] = {
    "attn_norm": "D",
    "wq": "H*d, D",
    "wk": "G*d, D",
    "wv": "G*d, D",
    "wo": "D, H*d",
    "ffn_norm": "D",
    "w_gate": "F, D",
    "w_up": "F, D",
    "w_down": "D, F",
}
TOP_SHAPES: dict[str, str] = {"embed": "V, D", "final_norm": "D", "lm_head": "V, D"}

# Tables of rotations that some exporters store; we compute our own.
_IGNORED_ENDINGS = (
    "rotary_emb.inv_freq",
    "rotary_emb.cos_cached",
    "rotary_emb.sin_cached",
    "masked_bias",
    "rope.freqs",
)
# What would change the result if it were left out.
_REFUSED_ENDINGS = (
    (".bias", "biases"),
    ("q_norm.weight", "norms of queries and keys"),
    ("k_norm.weight", "norms of queries and keys"),
    ("rope_freqs.weight", "scaled rope frequencies"),
    ("rope_factors_long.weight", "scaled rope frequencies"),
    ("rope_factors_short.weight", "scaled rope frequencies"),
    ("_exps.weight", "experts"),
    ("_inp.weight", "expert routers"),
)


def expected_shapes(cfg: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Canonical name to shape, for every tensor that a model of this config has."""
    letters = cfg.shape_letters

    def sizes(spec: str) -> tuple[int, ...]:
        return tuple(prod(letters[letter] for letter in axis.strip().split("*"))
                     for axis in spec.split(","))  # fmt: skip

    shapes = {"embed": sizes(TOP_SHAPES["embed"])}
    per_layer = {name: sizes(spec) for name, spec in LAYER_SHAPES.items()}
    for i in range(cfg.n_layers):
        shapes.update({f"layers.{i}.{name}": shape for name, shape in per_layer.items()})
    shapes["final_norm"] = sizes(TOP_SHAPES["final_norm"])
    if not cfg.tied_head:
        shapes["lm_head"] = sizes(TOP_SHAPES["lm_head"])
    return shapes


def check_tensors(
    tensors: Mapping[str, TensorView], cfg: ModelConfig, table: Table, where: str
) -> dict[str, TensorView]:
    """The tensors of the config in the config's order, all present and of the right shape.

    Raises:  ConfigError naming the tensor, what is wanted and what is there; UnsupportedError
             for a quantised vector
    """
    checked: dict[str, TensorView] = {}
    for name, want in expected_shapes(cfg).items():
        view = tensors.get(name)
        shown = f"tensor {in_file(table, name)!r} ({name})"
        if view is None:
            raise ConfigError(f"{where}: {shown} is missing; {list(want)} wanted")
        if view.shape != want:
            raise ConfigError(
                f"{where}: {shown} has the shape {list(view.shape)}, not {list(want)}"
            )
        if len(want) == 1 and not view.dtype.is_float:
            raise UnsupportedError(f"{where}: {shown} is a vector of type {view.dtype.name}")
        checked[name] = view
    return checked


def check_extras(names: Iterable[str], n_layers: int, table: Table, where: str) -> None:
    """Refuse left-over tensors that would change the result; log the others in one line.

    Notes:   `names` are the file's; those that the table knows are left over only if their layer
             is beyond the last
    Raises:  UnsupportedError, ConfigError
    """
    ignored: list[str] = []
    for name in names:
        ours = canonical(table, name)
        if ours is not None:
            index = layer_index(ours)
            if index is not None and index >= n_layers:
                raise ConfigError(
                    f"{where}: tensor {name!r} belongs to layer {index}, but the config says "
                    f"{n_layers} layers"
                )
            continue
        for ending, meaning in _REFUSED_ENDINGS:
            if name.endswith(ending):
                raise UnsupportedError(
                    f"{where}: tensor '{printable(name)}': {meaning} are not supported"
                )
        if not name.endswith(_IGNORED_ENDINGS):
            ignored.append(printable(name))
    if ignored:
        log.info("%s: %d unknown tensors ignored: %s", where, len(ignored), ", ".join(ignored[:8]))
