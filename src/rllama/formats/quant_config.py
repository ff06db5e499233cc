"""How the matrices of a Hugging Face folder are quantised: quantization_config and its files."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Literal

from rllama.errors import ConfigError, UnsupportedError
from rllama.formats.fields import Fields, shown
from rllama.formats.files import is_file
from rllama.formats.json_file import read_fields

KEY = "quantization_config"
_GPTQ_FILE, _AWQ_FILE = "quantize_config.json", "quant_config.json"
_STORED_AS_THEY_ARE = ("mxfp4",)  # experts of gpt-oss: other readers know them by their tensors
_ZERO_OFFSETS = {"gptq": 1, "gptq_v2": 0}


@dataclass(frozen=True, slots=True)
class QuantScheme:
    """How packed matrices are to be read.

    Units: group_size inputs, -1 for all of a row; zero_offset is what stored zeros are short of
    """

    method: Literal["gptq", "awq"]
    bits: int
    group_size: int
    zero_offset: int


def read_scheme(config: Fields, folder: str) -> QuantScheme | None:
    """What config.json says of quantisation, or a file of its own beside it; None: nothing.

    Raises:  UnsupportedError for other methods, by name; ConfigError for impossible numbers
    """
    if KEY in config:
        value = config.values[KEY]
        if not isinstance(value, dict):
            raise config.fail(KEY, f"must be an object, not {shown(value)}")
        method = _method(value)
        if method in _STORED_AS_THEY_ARE:
            return None
        return _scheme(Fields(value, f"{config.where}: {KEY}"), method)
    for name, method in ((_GPTQ_FILE, "gptq"), (_AWQ_FILE, "awq")):
        path = os.path.join(folder, name)
        if is_file(path):
            fields = read_fields(path, ConfigError)
            return _scheme(fields, str(fields.values.get("quant_method", method)))
    return None


def _method(values: dict[str, object]) -> str:
    given = values.get("quant_method")
    if given is None and ("load_in_8bit" in values or "load_in_4bit" in values):
        return "bitsandbytes"
    return given if isinstance(given, str) else shown(given)


def _scheme(fields: Fields, method: str) -> QuantScheme:
    if method == "gptq":
        return _gptq(fields)
    if method == "awq":
        return _awq(fields)
    raise UnsupportedError(
        f"{fields.where}: weights quantised by {shown(method)} are not supported; gptq, awq and "
        "mxfp4 (of experts) are"
    )


def _gptq(fields: Fields) -> QuantScheme:
    kind = fields.text("checkpoint_format", "gptq")
    if kind not in _ZERO_OFFSETS:
        raise UnsupportedError(
            f"{fields.where}: checkpoint_format {shown(kind)} is not supported; gptq and gptq_v2 "
            "are"
        )
    fields.flag("sym", True)
    fields.flag("desc_act", False)
    if fields.flag("is_marlin_format", False):
        raise UnsupportedError(f"{fields.where}: is_marlin_format is not supported")
    own = fields.values.get("dynamic") or {}
    if not isinstance(own, dict) or not all(str(name).startswith("-:") for name in own):
        raise UnsupportedError(
            f"{fields.where}: dynamic: bits or groups of single matrices are not supported"
        )
    bits = fields.whole("bits")
    if bits not in (2, 3, 4, 8):
        raise UnsupportedError(f"{fields.where}: {bits} bits are not supported; 2, 3, 4 and 8 are")
    return QuantScheme("gptq", bits, _group_size(fields, "group_size"), _ZERO_OFFSETS[kind])


def _awq(fields: Fields) -> QuantScheme:
    version = fields.text("version", "gemm")
    if version.lower() != "gemm" or fields.text("backend", "autoawq") != "autoawq":
        raise UnsupportedError(
            f"{fields.where}: AWQ version {shown(version)} (backend "
            f"{shown(fields.text('backend', 'autoawq'))}) is not supported; gemm of autoawq is"
        )
    if not fields.flag("zero_point", True):
        raise UnsupportedError(f"{fields.where}: zero_point false is not supported")
    bits = fields.whole("w_bit" if "w_bit" in fields else "bits")
    if bits != 4:
        raise UnsupportedError(f"{fields.where}: AWQ of {bits} bits is not supported; 4 is")
    key = "q_group_size" if "q_group_size" in fields else "group_size"
    return QuantScheme("awq", bits, _group_size(fields, key), 0)


def _group_size(fields: Fields, key: str) -> int:
    size = fields.whole(key, low=-1)
    if size == 0:
        raise fields.fail(key, "is 0; a number of inputs is wanted, or -1 for all")
    return size
