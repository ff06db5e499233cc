"""What an architecture says about its own files: names of tensors, keys, numbers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from rllama.config import ModelConfig
from rllama.errors import ConfigError, RllamaError, UnsupportedError
from rllama.formats.fields import Fields
from rllama.formats.hparams import FindArch

Names = Mapping[str, str]
Adapt = Callable[[dict[str, object]], Mapping[str, object]]
Config = Callable[[Mapping[str, object], ModelConfig], ModelConfig]


@dataclass(frozen=True, slots=True)
class Hooks:
    """The hooks of one architecture (`Decoder` in models/base.py); built-in ones change nothing.

    Notes: names are in addition to those of the file family
    """

    arch: str = ""
    hf_names: Names = field(default_factory=dict)
    gguf_names: Names = field(default_factory=dict)
    adapt: Adapt | None = None
    config: Config | None = None

    def fields(self, fields: Fields) -> Fields:
        """The keys of a file as its reader expects them. Raises ConfigError."""
        if self.adapt is None:
            return fields
        adapt = self.adapt
        values = self._call("adapt", fields.where, lambda: adapt(dict(fields.values)))
        if not isinstance(values, Mapping):
            raise self._wrong("adapt", fields.where, "gave no mapping")
        return Fields(values, fields.where)

    def numbers(self, fields: Fields, cfg: ModelConfig) -> ModelConfig:
        """The numbers as the architecture settles them. Raises ConfigError."""
        if self.config is None:
            return cfg
        config = self.config
        numbers = self._call("config", fields.where, lambda: config(fields.values, cfg))
        if not isinstance(numbers, ModelConfig):
            raise self._wrong("config", fields.where, "gave no ModelConfig")
        return numbers

    def _call(self, hook: str, where: str, call: Callable[[], object]) -> object:
        try:
            return call()
        except RllamaError:
            raise
        except Exception as error:
            said = f"failed: {type(error).__name__}: {error}"
            raise self._wrong(hook, where, said) from error

    def _wrong(self, hook: str, where: str, problem: str) -> ConfigError:
        return ConfigError(f"{where}: {hook}() of the architecture {self.arch!r} {problem}")


def hooks_of(arch: object, find_arch: FindArch | None) -> Hooks:
    """The hooks of an architecture; none where it is not known, which is said elsewhere."""
    if find_arch is None or not isinstance(arch, str):
        return Hooks()
    try:
        found = find_arch(arch)
    except UnsupportedError:
        return Hooks()
    return Hooks(
        arch,
        getattr(found, "HF_NAMES", {}),
        getattr(found, "GGUF_NAMES", {}),
        getattr(found, "adapt", None),
        getattr(found, "config", None),
    )
