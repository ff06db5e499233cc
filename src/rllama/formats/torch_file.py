"""TorchFile: the tensors that torch.save wrote, without torch and without executing anything."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np

from rllama.dtypes import dtype_by_safetensors_name
from rllama.errors import FormatError, MemoryPlanError, RllamaError, UnsupportedError
from rllama.formats import names
from rllama.formats.files import printable
from rllama.formats.safe_pickle import Build, Name, Namespace, Words, read_pickle
from rllama.formats.safetensors import Entry
from rllama.formats.torch_archive import TorchArchive, open_archive
from rllama.memory import available_memory
from rllama.tensor import TensorView

log = logging.getLogger(__name__)

_MAX_DIMS = 8
_MAX_COPY_BYTES = 1 << 30
_COMPILED_PREFIX = "_orig_mod."  # torch.compile puts it before every name
_STATE_KEYS = ("model", "state_dict", "module")  # where a training checkpoint has its weights

# Element types by the names of safetensors, of typed storages and of torch's dtypes.
_STORAGES = {
    "torch.HalfStorage": "F16", "torch.BFloat16Storage": "BF16", "torch.FloatStorage": "F32",
    "torch.DoubleStorage": "F64", "torch.LongStorage": "I64", "torch.IntStorage": "I32",
    "torch.ShortStorage": "I16", "torch.CharStorage": "I8", "torch.ByteStorage": "U8",
    "torch.BoolStorage": "BOOL",
}  # fmt: skip
_UNTYPED = "torch.storage.UntypedStorage"
_DTYPES = {
    "torch.float16": "F16", "torch.bfloat16": "BF16", "torch.float32": "F32",
    "torch.float64": "F64", "torch.int64": "I64", "torch.int32": "I32", "torch.int16": "I16",
    "torch.int8": "I8", "torch.uint8": "U8", "torch.bool": "BOOL", "torch.uint16": "U16",
    "torch.uint32": "U32", "torch.uint64": "U64", "torch.float8_e4m3fn": "F8_E4M3",
    "torch.float8_e5m2": "F8_E5M2",
}  # fmt: skip
_ITEM_BYTES = {
    "F16": 2, "BF16": 2, "F32": 4, "F64": 8, "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U8": 1,
    "BOOL": 1, "U16": 2, "U32": 4, "U64": 8, "F8_E4M3": 1, "F8_E5M2": 1,
}  # fmt: skip
_UNSUPPORTED = {
    **{f"torch.{kind}Storage": "complex numbers" for kind in ("ComplexFloat", "ComplexDouble")},
    **{f"torch.{kind}Storage": "torch's own quantised tensors"
       for kind in ("QInt8", "QUInt8", "QInt32", "QUInt4x2", "QUInt2x4")},
    "torch._utils._rebuild_qtensor": "torch's own quantised tensors",
    "torch._utils._rebuild_sparse_tensor": "sparse tensors",
    "torch._utils._rebuild_nested_tensor": "nested tensors",
    "torch._utils._rebuild_wrapper_subclass": "tensor subclasses",
    "torch._tensor._rebuild_from_type_v2": "tensor subclasses",
    "torch._utils._rebuild_meta_tensor_no_storage": "tensors without storage",
    "torch._utils._rebuild_device_tensor_from_numpy": "tensors of foreign devices",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Storage:
    """A run of bytes that tensors share; dtype None: they say it themselves."""

    key: str
    dtype: str | None
    count: int


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """What a pickle says about one tensor.

    Units: offset and strides count elements of the storage
    """

    storage: Storage
    dtype: str
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    @property
    def n_bytes(self) -> int:
        return prod(self.shape) * _ITEM_BYTES[self.dtype]

    @property
    def is_contiguous(self) -> bool:
        """Whether its elements follow each other, rows first."""
        width = 1
        for size, stride in zip(reversed(self.shape), reversed(self.strides), strict=True):
            if size != 1 and stride != width:
                return False
            width *= size
        return True


class TorchFile:
    """One torch file or unzipped folder: its tensors by name, and what else it says.

    Notes:   `tensors` is the state dictionary, of a training checkpoint the one inside; `tree` is
             the whole, for looking up settings; both may hold anything, nothing of it was run
    Raises:  FormatError, UnsafeFileError, UnsupportedError
    """

    def __init__(self, path: str) -> None:
        self._archive: TorchArchive = open_archive(path)
        try:
            self.path, self.where = path, self._archive.where
            tree = read_pickle(self._archive.pickle(), f"{self.where}: data.pkl", _WORDS)
            if type(tree) is not dict:
                raise FormatError(
                    f"{self.where}: holds a {type(tree).__name__}, no dictionary of tensors"
                )
            self.tree: dict[str, Any] = tree
            self.tensors = _state_dict(tree, self.where)
            self._names: dict[int, str] = {}
        except BaseException:
            self._archive.close()
            raise

    def view(self, name: str) -> TensorView:
        """One tensor: mapped, or a copy where its elements do not follow each other.

        Raises:  FormatError if it reaches out of its storage, UnsupportedError for its type,
                 MemoryPlanError if the copy is large
        """
        tensor = self.tensors[name]
        where = f"{self.where}: tensor '{printable(name)[:200]}'"
        dtype = dtype_by_safetensors_name(tensor.dtype, where)
        offset = self._archive.offset(tensor.storage.key)
        origin = f"{self.where}:{printable(name)}@{offset:#x}"
        return TensorView(self._bytes(name), dtype, tensor.shape, origin)

    def _bytes(self, name: str) -> memoryview:
        """The elements of a tensor, rows first."""
        tensor = self.tensors[name]
        where = f"{self.where}: tensor '{printable(name)[:200]}'"
        self._check_range(tensor, where)
        data = self._archive.storage(tensor.storage.key)
        if not tensor.is_contiguous:
            return _gathered(data, tensor, where)
        first = tensor.offset * _ITEM_BYTES[tensor.dtype]
        return data[first : first + tensor.n_bytes]

    def entries(self) -> dict[str, Entry]:
        """The tensors as a safetensors header lists them, for `slice`.

        Notes: an offset is the tensor's own in the file, or one near it where two would be the same
        """
        names: dict[int, str] = {}
        found: dict[str, Entry] = {}
        for name, tensor in self.tensors.items():
            self._check_range(tensor, f"{self.where}: tensor '{printable(name)[:200]}'")
            offset = self._archive.offset(tensor.storage.key)
            offset += tensor.offset * _ITEM_BYTES[tensor.dtype]
            while self.tensors[names.setdefault(offset, name)] != tensor:
                offset += 1
            found[name] = Entry(tensor.dtype, tensor.shape, offset, tensor.n_bytes)
        self._names = names
        return found

    def slice(self, offset: int, n_bytes: int, what: str) -> memoryview:
        """The bytes of the tensor whose entry has this offset and size."""
        name = self._names[offset]
        assert self.tensors[name].n_bytes == n_bytes, what
        return self._bytes(name)

    def read(self, offset: int, n_bytes: int, what: str) -> bytes:
        """A copy of them."""
        return bytes(self.slice(offset, n_bytes, what))

    def seal(self) -> None:
        """End of reading; the views stay."""
        self._archive.seal()

    def close(self) -> None:
        """Drop the mapping; views that others hold stay valid."""
        self._archive.close()

    def _check_range(self, tensor: StoredTensor, where: str) -> None:
        storage, width = tensor.storage, _ITEM_BYTES[tensor.dtype]
        have, n_bytes = self._archive.storage_bytes(storage.key), storage.count
        n_bytes *= 1 if storage.dtype is None else _ITEM_BYTES[storage.dtype]
        if have != n_bytes:
            raise FormatError(
                f"{where}: storage {storage.key} is to have {n_bytes} bytes, the file has {have}"
            )
        last = tensor.offset + sum(
            (size - 1) * stride for size, stride in zip(tensor.shape, tensor.strides, strict=True)
        )
        if prod(tensor.shape) and (last + 1) * width > have:
            raise FormatError(
                f"{where}: shape {list(tensor.shape)} with strides {list(tensor.strides)} from "
                f"{tensor.offset} on reaches element {last} of storage {storage.key}, which has "
                f"{have // width}"
            )


def holds_names(path: str, table: names.Table) -> bool:
    """Whether a torch file has tensors that a table knows; False for whatever cannot be read."""
    try:
        file = TorchFile(path)
    except RllamaError:
        return False
    with closing(file):
        return any(names.canonical(table, name) for name in file.tensors)


def _gathered(data: memoryview, tensor: StoredTensor, where: str) -> memoryview:
    """The elements of a tensor one after the other, copied."""
    have = available_memory().n_bytes
    if tensor.n_bytes > min(_MAX_COPY_BYTES, have // 2):
        raise MemoryPlanError(
            f"{where}: its {tensor.n_bytes / 1e9:.2f} GB do not lie in order (strides "
            f"{list(tensor.strides)}) and would have to be copied; save it as .contiguous()"
        )
    log.info("%s: copied, for its elements do not lie in order", where)
    width = _ITEM_BYTES[tensor.dtype]
    elements = np.frombuffer(data, dtype=np.dtype(f"u{width}"), offset=tensor.offset * width)
    strides = tuple(stride * width for stride in tensor.strides)
    spread = np.lib.stride_tricks.as_strided(elements, tensor.shape, strides, writeable=False)
    return memoryview(np.ascontiguousarray(spread).reshape(-1).view(np.uint8).data)


def _state_dict(tree: dict[str, Any], where: str) -> dict[str, StoredTensor]:
    """The tensors of a state dictionary, or of the one inside a training checkpoint."""
    inner = [tree[key] for key in _STATE_KEYS if type(tree.get(key)) is dict]
    found = max((_tensors_of(part) for part in (tree, *inner)), key=len)
    if not found:
        raise FormatError(f"{where}: a torch file without tensors")
    names = [name.removeprefix(_COMPILED_PREFIX) for name in found]
    if len(set(names)) != len(names):
        raise FormatError(f"{where}: tensors with and without {_COMPILED_PREFIX!r} before them")
    return dict(zip(names, found.values(), strict=True))


def _tensors_of(tree: Mapping[Any, Any]) -> dict[str, StoredTensor]:
    return {
        name: value
        for name, value in tree.items()
        if type(value) is StoredTensor and type(name) is str
    }


# ---- what the pickle of a torch file may say ----


def _sizes(value: Any, what: str, where: str) -> tuple[int, ...]:
    if type(value) is not tuple or len(value) > _MAX_DIMS:
        raise FormatError(f"{where}: {what} must be a tuple of at most {_MAX_DIMS} sizes")
    for size in value:
        _whole(size, what, where)
    return value


def _whole(value: Any, what: str, where: str) -> int:
    if type(value) is not int or not 0 <= value < 2**48:
        shown = value if type(value) is int and abs(value) < 2**64 else f"a {type(value).__name__}"
        raise FormatError(f"{where}: {what} has {shown} where a size is wanted")
    return value


def _storage(identity: tuple[Any, ...], where: str) -> Storage:
    if len(identity) != 5 or identity[0] != "storage" or type(identity[1]) is not Name:
        raise FormatError(f"{where}: (storage, type, key, place, count) is wanted")
    _, kind, key, place, count = identity
    if kind.text not in _STORAGES and kind.text != _UNTYPED:
        raise FormatError(f"{where}: {kind.text} is no type of storage")
    if type(key) is not str or type(place) is not str:
        raise FormatError(f"{where}: key and place must be texts")
    return Storage(key, _STORAGES.get(kind.text), _whole(count, "count", where))


def _tensor_v2(arguments: tuple[Any, ...], where: str) -> StoredTensor:
    if len(arguments) not in (6, 7):
        raise FormatError(f"{where}: {len(arguments)} arguments")
    return _tensor(arguments, None, where)


def _tensor_v3(arguments: tuple[Any, ...], where: str) -> StoredTensor:
    if len(arguments) not in (7, 8) or type(arguments[6]) is not Name:
        raise FormatError(f"{where}: {len(arguments)} arguments, or no type")
    return _tensor(arguments, _DTYPES.get(arguments[6].text), where)


def _tensor(arguments: tuple[Any, ...], dtype: str | None, where: str) -> StoredTensor:
    storage = arguments[0]
    if type(storage) is not Storage:
        raise FormatError(f"{where}: the first argument is no storage")
    dtype = dtype or storage.dtype
    if dtype is None:
        raise FormatError(f"{where}: a storage without a type")
    shape = _sizes(arguments[2], "size", where)
    strides = _sizes(arguments[3], "stride", where)
    if len(shape) != len(strides):
        raise FormatError(f"{where}: {len(shape)} sizes with {len(strides)} strides")
    return StoredTensor(storage, dtype, _whole(arguments[1], "offset", where), shape, strides)


def _parameter(arguments: tuple[Any, ...], where: str) -> StoredTensor:
    if len(arguments) != 3 or type(arguments[0]) is not StoredTensor:
        raise FormatError(f"{where}: a tensor and two more arguments are wanted")
    return arguments[0]


def _ordered_dict(arguments: tuple[Any, ...], where: str) -> dict[Any, Any]:
    if arguments:
        raise UnsupportedError(f"{where}: an OrderedDict made from a list is not supported")
    return {}


def _namespace(arguments: tuple[Any, ...], where: str) -> Namespace:
    if arguments:
        raise FormatError(f"{where}: {len(arguments)} arguments; none are wanted")
    return Namespace()


def _encoded(arguments: tuple[Any, ...], where: str) -> bytes:
    """Bytes as protocol 2 spells them."""
    if len(arguments) != 2 or type(arguments[0]) is not str or arguments[1] != "latin1":
        raise FormatError(f"{where}: a text and 'latin1' are wanted")
    try:
        return arguments[0].encode("latin-1")
    except UnicodeEncodeError:
        raise FormatError(f"{where}: a text that is not latin1") from None


def _size(arguments: tuple[Any, ...], where: str) -> tuple[int, ...]:
    if len(arguments) != 1 or type(arguments[0]) not in (tuple, list):
        raise FormatError(f"{where}: one tuple is wanted")
    return _sizes(tuple(arguments[0]), "size", where)


_BUILDERS: dict[str, Build] = {
    "torch._utils._rebuild_tensor_v2": _tensor_v2,
    "torch._utils._rebuild_tensor_v3": _tensor_v3,
    "torch._utils._rebuild_parameter": _parameter,
    "collections.OrderedDict": _ordered_dict,
    "argparse.Namespace": _namespace,
    "_codecs.encode": _encoded,
    "torch.Size": _size,
}
_WORDS = Words(_BUILDERS, frozenset({*_STORAGES, _UNTYPED, *_DTYPES}), _UNSUPPORTED, _storage)
