"""From a path to a model that is ready to run: files, architecture and backend meet here."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from rllama import tokenizers
from rllama.backend import Backend, get_backend
from rllama.config import EngineConfig, ModelConfig
from rllama.errors import ConfigError, FormatError, UnsupportedError
from rllama.formats import open_checkpoint, tokenizer_source
from rllama.formats.checkpoint import Checkpoint
from rllama.memory import Available, MemoryPlan, available_memory, once_mapped, plan_memory
from rllama.models import find
from rllama.models.base import Decoder, OnProgress, f16_copy_bytes, natural_kv_dtype
from rllama.models.table import check_tensors
from rllama.recast import read_recipes, recast
from rllama.tensor import JoinedView, TensorView, View
from rllama.tokenizers.base import Tokenizer

log = logging.getLogger(__name__)

StrPath = str | os.PathLike[str]

EMBEDDED_MODEL = Path(__file__).parent / "data" / "story.gguf"


@dataclass(frozen=True, slots=True, eq=False)
class Loaded:
    """A model with everything that it needs; the engine config has no open question left.

    Notes: tokenizer None where the checkpoint has none that can be read; it then serves token ids
           alone, and no_tokenizer says why
    """

    checkpoint: Checkpoint
    model: Decoder
    tokenizer: Tokenizer | None
    backend: Backend
    engine: EngineConfig
    plan: MemoryPlan
    f16: bool
    no_tokenizer: str = ""

    @property
    def cfg(self) -> ModelConfig:
        return self.model.cfg

    def step_bytes(self, n_positions: float) -> float:
        """Bytes that one decode step reads behind so many positions: weights and cache."""
        weights, tensors = self.plan.weights_bytes, self.checkpoint.tensors
        if "lm_head" in tensors:
            # A table that is no head: one row of it is read.
            embed = held_bytes({"embed": tensors["embed"]}, f16=self.f16)
            weights -= embed - embed // self.cfg.vocab_size
        cfg, position_bytes = self.cfg, self.plan.page_bytes / self.engine.page_len
        seen = sum(min(n_positions, cfg.window(i) or n_positions) for i in range(cfg.n_layers))
        return weights + seen * position_bytes / cfg.n_layers

    def close(self) -> None:
        """Give the backend and the mapped file back."""
        self.backend.close()
        self.checkpoint.close()


def load(
    path: StrPath | None,
    *,
    tokenizer_path: StrPath | None = None,
    param_path: StrPath | None = None,
    f16: bool = False,
    quantize: str | None = None,
    isa: str | None = None,
    n_threads: int | None = None,
    engine: EngineConfig | None = None,
    on_progress: OnProgress | None = None,
) -> Loaded:
    """Open a checkpoint, plan its memory, place its weights.

    Notes:   path None is the model that comes with the package; quantize as `read_recipes` has it
    Raises:  ConfigError, FormatError, UnsupportedError, MemoryPlanError, BackendError
    """
    start = time.perf_counter()
    recipes = None if quantize is None else read_recipes(quantize)
    # Asked before the file is opened, for a part of it may be read into memory at once.
    available = available_memory()
    with ExitStack() as undo:
        backend = get_backend("cpu", isa=isa, n_threads=n_threads)
        undo.callback(backend.close)
        checkpoint = open_model(path, param_path=param_path, tokenizer_path=tokenizer_path)
        undo.callback(checkpoint.close)
        cfg = _config_of(checkpoint)
        if recipes is not None:
            checkpoint.tensors = recast(checkpoint.tensors, recipes, checkpoint.where)
            f16 = f16 or recipes.f16
        architecture = find(cfg.arch)
        tokenizer, no_tokenizer = _tokenizer_of(
            checkpoint, cfg, is_named=tokenizer_path is not None
        )
        settled, plan = _settle(checkpoint, cfg, engine or EngineConfig(), f16, available)
        model = architecture(
            cfg,
            checkpoint.tensors,
            backend,
            f16=f16,
            max_batch_tokens=settled.max_batch_tokens,
            max_seq_len=settled.max_seq_len,
            on_progress=on_progress,
        )
        undo.pop_all()
    loaded = Loaded(checkpoint, model, tokenizer, backend, settled, plan, f16, no_tokenizer)
    _log_load(loaded, time.perf_counter() - start)
    return loaded


def _settle(
    checkpoint: Checkpoint, cfg: ModelConfig, engine: EngineConfig, f16: bool, available: Available
) -> tuple[EngineConfig, MemoryPlan]:
    """Answer what the options leave open: type and size of the cache, length of the context."""
    tensors = checkpoint.tensors
    kv_dtype = engine.kv_dtype
    if kv_dtype == "auto":
        kv_dtype = natural_kv_dtype(tensors, f16=f16)
    plan = plan_memory(
        cfg,
        engine,
        weights_bytes=held_bytes(tensors, f16=f16),
        kv_dtype=kv_dtype,
        available=once_mapped(available, mapped_bytes(tensors, f16=f16)),
    )
    settled = replace(engine, kv_dtype=kv_dtype, n_pages=plan.n_pages, max_seq_len=plan.max_seq_len)
    return settled, plan


def load_tokenizer(path: StrPath) -> Tokenizer:
    """A tokenizer alone: a tokenizer.json, a .model, a tokenizer.bin, a GGUF, a folder with one.

    Raises:  ConfigError, FormatError, UnsupportedError
    """
    return tokenizers.load_tokenizer(tokenizer_source(os.path.expanduser(path)))


def held_bytes(tensors: Mapping[str, View], *, f16: bool) -> int:
    """Bytes of the weights as they run; a tensor that is copied does not stay in the file."""
    return sum((f16_copy_bytes(view) if f16 else 0) or view.n_bytes for view in tensors.values())


def mapped_bytes(tensors: Mapping[str, View], *, f16: bool) -> int:
    """Bytes of the weights that run where they lie after opening, without a copy."""
    stay = (view for view in tensors.values() if isinstance(view, TensorView | JoinedView))
    return sum(view.n_bytes for view in stay if not (f16 and f16_copy_bytes(view)))


def open_model(
    path: StrPath | None,
    *,
    param_path: StrPath | None = None,
    tokenizer_path: StrPath | None = None,
    lenient: bool = False,
) -> Checkpoint:
    """Open a checkpoint, None the embedded one, with the tensors of its architecture alone.

    Notes:   lenient as `formats.open_checkpoint` has it, and all tensors of the file, unchecked;
             a leading ~ of a path is the home folder
    Raises:  ConfigError, FormatError, UnsupportedError
    """
    if path is None and not EMBEDDED_MODEL.is_file():
        raise ConfigError("this installation has no embedded model; name a model with its path")
    with ExitStack() as undo, _fault_of_file():
        checkpoint = open_checkpoint(
            EMBEDDED_MODEL if path is None else os.path.expanduser(path),
            param_path=param_path and os.path.expanduser(param_path),
            tokenizer_path=tokenizer_path and os.path.expanduser(tokenizer_path),
            lenient=lenient,
            find_arch=find,
        )
        undo.callback(checkpoint.close)
        if not lenient:
            checkpoint.tensors = model_tensors(checkpoint)
        undo.pop_all()
    return checkpoint


def model_tensors(checkpoint: Checkpoint) -> dict[str, View]:
    """The tensors that the architecture of a checkpoint asks for, checked.

    Raises:  ConfigError, UnsupportedError, FormatError if there is no model at all
    """
    cfg = _config_of(checkpoint)
    return check_tensors(find(cfg.arch).TENSORS, cfg, checkpoint)


@contextmanager
def _fault_of_file() -> Iterator[None]:
    """What a file says is no mistake in the options."""
    try:
        yield
    except ConfigError as error:
        error.exit_code = 1
        raise


def _config_of(checkpoint: Checkpoint) -> ModelConfig:
    if checkpoint.config is None:
        raise FormatError(f"{checkpoint.where}: no model in this file that can run")
    return checkpoint.config


def _tokenizer_of(
    checkpoint: Checkpoint, cfg: ModelConfig, *, is_named: bool
) -> tuple[Tokenizer | None, str]:
    """The tokenizer, or why there is none; one that the user named must be of a kind we read."""
    source = checkpoint.tokenizer
    if source is None:
        return None, checkpoint.no_tokenizer
    if source.bos_token_id is None and source.kind == "json":
        source = replace(source, bos_token_id=cfg.bos_token_id)
    try:
        tokenizer = tokenizers.load_tokenizer(replace(source, vocab_size=cfg.vocab_size))
    except UnsupportedError as error:
        if is_named:
            raise
        log.warning("no tokenizer: %s", error)
        return None, str(error)
    if tokenizer.n_pieces < cfg.vocab_size // 4 and not is_named:
        raise FormatError(
            f"{source.path or checkpoint.where}: {tokenizer.n_pieces} tokens for a model with "
            f"{cfg.vocab_size}: not this model's tokenizer; name one with tokenizer_path "
            "(--tokenizer-path)"
        )
    if tokenizer.n_pieces < cfg.vocab_size * 3 // 4:  # padding an embedding adds far fewer rows
        log.warning(
            "%s: %d tokens for a model with %d; is it this model's tokenizer?",
            source.path,
            tokenizer.n_pieces,
            cfg.vocab_size,
        )
    return tokenizer, ""


def _log_load(loaded: Loaded, seconds: float) -> None:
    cfg, plan = loaded.cfg, loaded.plan
    log.info(
        "%s: %s of %d layers, width %d, %.1f MB of weights, context %d of %d, cache %s in %d "
        "pages (%.1f MB), ready in %.2f s",
        loaded.checkpoint.path,
        cfg.arch,
        cfg.n_layers,
        cfg.dim,
        plan.weights_bytes / 1e6,
        plan.max_seq_len,
        cfg.max_seq_len,
        loaded.engine.kv_dtype,
        plan.n_pages,
        plan.cache_bytes / 1e6,
        seconds,
    )
