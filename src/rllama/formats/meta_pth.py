"""Meta's layout: params.json beside consolidated.NN.pth, zipped or unzipped, whole or in shards."""

from __future__ import annotations

import logging
import os
import re
from contextlib import ExitStack
from typing import Any

from rllama.config import ModelConfig, TokenizerSource
from rllama.errors import ConfigError, FormatError, RllamaError
from rllama.formats import names
from rllama.formats.checkpoint import Checkpoint, Extra
from rllama.formats.fields import Fields
from rllama.formats.files import is_dir, is_file, list_dir, printable
from rllama.formats.hparams import FindArch, require_arch
from rllama.formats.hparams_meta import meta_config, meta_fields, require_numbers, unknown_keys
from rllama.formats.json_file import read_fields
from rllama.formats.meta_merge import merge
from rllama.formats.safe_pickle import Namespace
from rllama.formats.tokenizer_files import tokenizer_beside
from rllama.formats.torch_archive import is_bare_pickle, is_torch_path, unzipped_root
from rllama.formats.torch_file import TorchFile, holds_names
from rllama.tensor import View

log = logging.getLogger(__name__)

NAME = "Meta checkpoint"
_SHARD = re.compile(r"consolidated(?:\.([0-9]{2,3}))?(?:\.pth)?", re.ASCII)
_MAX_SHARDS = 64
_ROTATIONS = ("rope.freqs", "freqs_cos", "freqs_sin", "freqs_cis")  # computed, never read
_FIRST_LLAMA = ".inner_attention.rope.freqs"
_ARGUMENTS = ("model_args", "args", "params")  # where a training checkpoint has its numbers


def sniff(path: str) -> bool:
    """Whether this is a folder with shards, an unzipped torch file, or a torch file, old ones too.

    Notes: what else is in a zip archive or a pickle is said when it is opened
    """
    if is_dir(path):
        return unzipped_root(path) is not None or bool(_shard_names(path))
    return is_torch_path(path) or is_bare_pickle(path)


def holds_model(path: str) -> bool:
    """Whether a torch file has tensors with Meta's names; False for whatever cannot be read."""
    return holds_names(path, names.META)


def open(
    path: str,
    *,
    param_path: str | None = None,
    lenient: bool = False,
    find_arch: FindArch | None = None,
) -> Checkpoint:
    """Open a folder of shards, or one torch file with Meta's names for its tensors.

    Notes:   a file that is one of several shards stands for all of them; the numbers are those of
             params.json (or config.json) beside the weights, or of the file itself; the tokenizer
             lies beside the weights or one folder up
    Raises:  FormatError, UnsafeFileError, UnsupportedError, ConfigError
    """
    folder, paths = _shard_paths(path)
    with ExitStack() as stack:
        shards = [_open_shard(shard, stack) for shard in paths]
        fields = _numbers(path, folder, param_path, shards[0])
        checkpoint = _assemble(path, folder, fields, shards, find_arch)
        for shard in shards:
            shard.seal()
        checkpoint.on_close = stack.pop_all().close
    return checkpoint


def _open_shard(path: str, stack: ExitStack) -> TorchFile:
    shard = TorchFile(path)
    stack.callback(shard.close)
    return shard


# ---- which files ----


def _shard_names(folder: str) -> dict[str, int]:
    """Files and folders that are called as shards are, with their numbers."""
    found: dict[str, int] = {}
    for name in list_dir(folder):
        match = _SHARD.fullmatch(name)
        path = os.path.join(folder, name)
        if match and (is_file(path) or (is_dir(path) and unzipped_root(path) is not None)):
            found[name] = int(match.group(1) or 0)
    return found


def _shard_paths(path: str) -> tuple[str, list[str]]:
    """The folder of a model, and its shards in order.

    Raises:  FormatError if one is missing, ConfigError if one is there twice
    """
    own = os.path.abspath(path)
    folder, name = os.path.split(own)
    if is_dir(path) and not (_SHARD.fullmatch(name) or is_file(os.path.join(path, "data.pkl"))):
        folder, name = path, ""
        if not _shard_names(path):
            return folder, [path]  # an unzipped folder of another name, one level down
    elif not _SHARD.fullmatch(name):
        return path if is_dir(path) and _numbers_in(path) else folder, [path]
    found = _shard_names(folder)
    numbers = sorted(found.values())
    where = printable(folder)
    if len(set(numbers)) != len(numbers):
        listed = ", ".join(printable(shard) for shard in found)
        raise ConfigError(f"{where}: a shard is here twice ({listed}); keep one of each")
    if numbers != list(range(len(numbers))) or len(numbers) > _MAX_SHARDS:
        missing = next(n for n in range(_MAX_SHARDS + 1) if n not in numbers)
        raise FormatError(
            f"{where}: shard consolidated.{missing:02d} is missing; there are "
            f"{', '.join(f'{n:02d}' for n in numbers[:20])}"
        )
    ordered = sorted(found, key=lambda shard: found[shard])
    return folder, [os.path.join(folder, shard) for shard in ordered]


# ---- the numbers ----


def _numbers(path: str, folder: str, param_path: str | None, shard: TorchFile) -> Fields:
    """Where the model's numbers stand: named, beside the weights, or inside the file."""
    inside = _own_numbers(shard)
    found = param_path or _numbers_in(folder)
    if param_path is None and inside is not None:
        return inside
    if found is None:
        raise ConfigError(
            f"{printable(path)}: weights in Meta's layout need a params.json beside them, or a "
            "param_path (--param-path) that names one"
        )
    return meta_fields(read_fields(found, ConfigError))


def _numbers_in(folder: str) -> str | None:
    """The file with the numbers, if there is one in a folder."""
    beside = (os.path.join(folder, name) for name in ("params.json", "config.json"))
    return next((path for path in beside if is_file(path)), None)


def _own_numbers(shard: TorchFile) -> Fields | None:
    """The arguments that a training checkpoint holds beside its weights."""
    for key in _ARGUMENTS:
        value: Any = shard.tree.get(key)
        value = value.values if type(value) is Namespace else value
        if type(value) is dict and "dim" in value and all(type(name) is str for name in value):
            return Fields(value, f"{shard.where}: {key}")
    return None


# ---- the tensors ----


def _assemble(
    path: str,
    folder: str,
    fields: Fields,
    shards: list[TorchFile],
    find_arch: FindArch | None,
) -> Checkpoint:
    require_numbers(fields)
    require_arch("llama", find_arch, fields.where)
    _require_names(shards)
    _require_all_shards(shards, fields)
    found, extras = _tensors(shards, fields)
    config = _config(path, folder, fields, found, extras)
    if unknown := unknown_keys(fields):
        log.info("%s: ignored: %s", fields.where, ", ".join(printable(key) for key in unknown[:8]))
    metadata: dict[str, Any] = {"files": [shard.path for shard in shards], "params": fields.values}
    tokenizer, problem = _find_tokenizer(folder, config.vocab_size)
    kept = tuple(extra for extra in extras if not extra.name.endswith(_ROTATIONS))
    return Checkpoint(
        path, NAME, config, found, tokenizer, metadata, extras=kept, names=names.META,
        no_tokenizer=problem,
    )  # fmt: skip


def _require_names(shards: list[TorchFile]) -> None:
    """Every shard has the same tensors, and they are Meta's. Raises FormatError."""
    wanted = set(shards[0].tensors)
    if not any(names.canonical(names.META, name) for name in wanted):
        some = ", ".join(printable(name) for name in list(shards[0].tensors)[:3])
        raise FormatError(
            f"{shards[0].where}: no tensor has a name that is known ({some}); Meta's begin with "
            "tok_embeddings.weight, Hugging Face's, with config.json beside, with model."
        )
    for shard in shards[1:]:
        if odd := sorted(wanted ^ set(shard.tensors)):
            raise FormatError(
                f"{shard.where}: tensor '{printable(odd[0])}' is only in some of the shards"
            )


def _require_all_shards(shards: list[TorchFile], fields: Fields) -> None:
    """Raises FormatError where the shards make up less than a model as wide as its numbers."""
    stored = shards[0].tensors.get("layers.0.attention.wq.weight")
    dim, n_heads = fields.whole("dim"), fields.whole("n_heads")
    wanted = n_heads * fields.whole("head_dim", dim // n_heads or 1)
    if stored is None or len(stored.shape) != 2 or stored.shape[1] != dim or not stored.shape[0]:
        return
    n_shards, rest = divmod(wanted, stored.shape[0])
    if not rest and len(shards) < n_shards <= _MAX_SHARDS:
        raise FormatError(
            f"{shards[0].where}: shards seem to be missing: each has {stored.shape[0]} of the "
            f"{wanted} rows of its queries ({len(shards)} of {n_shards} shards are here)"
        )


def _tensors(shards: list[TorchFile], fields: Fields) -> tuple[dict[str, View], tuple[Extra, ...]]:
    found: dict[str, View] = {}
    extras: list[Extra] = []
    dim, n_heads = fields.whole("dim"), fields.whole("n_heads")
    kv_dim = fields.whole("n_kv_heads", n_heads) * fields.whole("head_dim", dim // n_heads or 1)
    for name, stored in shards[0].tensors.items():
        ours = names.canonical(names.META, name)
        if ours is None:
            role = names.role(name)
            extras.append(Extra(name, stored.dtype, stored.shape, stored.n_bytes, role))
            continue
        parts = [shard.view(name) for shard in shards]
        found[ours] = merge(ours, parts, dim=dim, kv_dim=kv_dim)
    if _is_same_storage(shards):
        del found["lm_head"]
    return found, tuple(extras)


def _is_same_storage(shards: list[TorchFile]) -> bool:
    """Whether the head is the embedding itself, stored once under two names."""
    pairs = [(shard.tensors.get("output.weight"), shard.tensors.get("tok_embeddings.weight"))
             for shard in shards]  # fmt: skip
    return all(head is not None and head == embed for head, embed in pairs)


def _config(
    path: str, folder: str, fields: Fields, found: dict[str, View], extras: tuple[Extra, ...]
) -> ModelConfig:
    embed, gate = found.get("embed"), found.get("layers.0.w_gate")
    for view, name in ((embed, "tok_embeddings.weight"),
                       (gate, "layers.0.feed_forward.w1.weight")):  # fmt: skip
        if view is None or len(view.shape) != 2:
            raise ConfigError(f"{printable(path)}: tensor '{name}' is missing or no matrix")
    assert embed is not None
    assert gate is not None
    return meta_config(
        fields, vocab_size=embed.shape[0], ffn_dim=gate.shape[0],
        tied_head="lm_head" not in found,
        is_first_llama=any(extra.name.endswith(_FIRST_LLAMA) for extra in extras),
        name=os.path.basename(os.path.abspath(folder)),
    )  # fmt: skip


def _find_tokenizer(folder: str, vocab_size: int) -> tuple[TokenizerSource | None, str]:
    """The tokenizer beside the weights; else one a folder up, where Meta puts it, if it fits.

    Notes: the second says why there is none
    """
    found, problem = tokenizer_beside(folder, vocab_size)
    if found is not None:
        return found, ""
    try:
        above, _ = tokenizer_beside(os.path.dirname(os.path.abspath(folder)), vocab_size)
    except RllamaError as error:
        log.info("a tokenizer one folder up is left alone: %s", error)
        above = None
    if above is not None and len(above.pieces) <= vocab_size:
        return above, ""
    return None, f"{problem} and one folder up"
