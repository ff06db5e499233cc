"""The tensor table of an architecture, and the one check of a checkpoint against it."""

from __future__ import annotations

import logging
from collections.abc import Container, Iterator
from dataclasses import dataclass

from rllama.config import ModelConfig
from rllama.errors import ConfigError, UnsupportedError
from rllama.formats.checkpoint import Checkpoint, Extra
from rllama.formats.files import printable
from rllama.formats.names import layer_index
from rllama.tensor import View

log = logging.getLogger(__name__)

PER_LAYER = "layers.{i}."
PER_EXPERT = "experts.{e}."


@dataclass(frozen=True, slots=True)
class T:
    """One row of a tensor table: canonical name and shape in config letters ("H*d, D").

    Notes:   a row of experts stands for as many tensors in each layer;
             an optional row is in every layer of a file or in none; a row with parts is a matrix of
             several, one below the other ("H*d + G*d + G*d, D"), that files may have instead of
             the rows of these names
    """

    name: str
    shape: str
    optional: bool = False
    parts: tuple[str, ...] = ()


def settled(table: tuple[T, ...], names: Container[str]) -> tuple[T, ...]:
    """The rows that a file with these tensors is to have: its way where there is a choice."""

    def is_there(row_name: str) -> bool:
        return row_name.replace("{i}", "0").replace("{e}", "0") in names

    fused = [row for row in table if row.parts and is_there(row.name)]
    replaced = {part for row in fused for part in row.parts}
    return tuple(
        row for row in table
        if row in fused
        or (not row.parts and row.name not in replaced and (not row.optional or is_there(row.name)))
    )  # fmt: skip


def expand(table: tuple[T, ...], cfg: ModelConfig) -> Iterator[tuple[T, int | None, str]]:
    """Every tensor of a model: its row, its layer (None outside the layers), its full name.

    Notes: a head that is tied to the embedding is no tensor of its own
    """
    for row in table:
        if row.name.startswith(PER_LAYER):
            n_experts = cfg.n_experts if PER_EXPERT in row.name else 1
            for i in range(cfg.n_layers):
                name = row.name.replace("{i}", str(i))
                for e in range(n_experts):
                    yield row, i, name.replace("{e}", str(e))
        elif row.name != "lm_head" or not cfg.tied_head:
            yield row, None, row.name


def check_tensors(
    table: tuple[T, ...], cfg: ModelConfig, checkpoint: Checkpoint
) -> dict[str, View]:
    """The tensors that a model needs, in the table's order, all present and of the right shape.

    Raises:  ConfigError where one is missing, has another shape, or belongs to no layer;
             UnsupportedError for what would change the result if it were left out, and for
             vectors in blocks
    """
    checked: dict[str, View] = {}
    table = settled(table, checkpoint.tensors)
    shapes = {row.name: cfg.sizes(row.shape) for row in table}
    for row, _, name in expand(table, cfg):
        view, want = checkpoint.tensors.get(name), shapes[row.name]
        if view is None:
            raise ConfigError(
                f"{checkpoint.where}: tensor {checkpoint.name_in_file(name)!r} ({name}) is "
                f"missing; {list(want)} wanted"
            )
        if view.shape != want:
            raise ConfigError(
                f"{view.origin}: tensor {name} has the shape {list(view.shape)}, not {list(want)} "
                f"([{row.shape}] of the model's numbers)"
            )
        if len(want) == 1 and not view.dtype.is_float:
            raise UnsupportedError(f"{view.origin}: {name} is a vector of type {view.dtype.name}")
        checked[name] = view
    for name, view in checkpoint.tensors.items():
        if name not in checked:
            _check_left_over(name, view, cfg)
    _check_extras(checkpoint.extras, checkpoint.where)
    return checked


def _check_left_over(name: str, view: View, cfg: ModelConfig) -> None:
    index = layer_index(name)
    if index is not None and index >= cfg.n_layers:
        raise ConfigError(
            f"{view.origin}: tensor {name} belongs to layer {index}, but the model has "
            f"{cfg.n_layers} layers"
        )
    if name != "lm_head":  # a stored copy of a tied head says nothing new
        raise UnsupportedError(
            f"{view.origin}: tensor {name} is no part of the architecture {cfg.arch!r} as this "
            "version knows it; leaving it out would give wrong text"
        )


def _check_extras(extras: tuple[Extra, ...], where: str) -> None:
    for extra in extras:
        if extra.role:
            raise UnsupportedError(
                f"{where}: tensor '{printable(extra.name)}': {extra.role} are not supported"
            )
    ignored = [printable(extra.name) for extra in extras]
    if ignored:
        log.info("%s: %d unknown tensors ignored: %s", where, len(ignored), ", ".join(ignored[:8]))
