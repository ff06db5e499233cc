"""TorchArchive: what a torch file is made of, in a zip archive or in the folder it unzips to."""

from __future__ import annotations

import os
from typing import Protocol

from rllama.errors import FormatError, UnsafeFileError, UnsupportedError
from rllama.formats.files import (
    is_dir,
    is_file,
    list_dir,
    printable,
    read_head,
    read_small,
    stat_path,
)
from rllama.formats.mapped_file import MappedFile
from rllama.formats.unknown import known_kind
from rllama.formats.zip_file import MAGIC, Member, ZipFile

_PICKLE = "data.pkl"
_MAX_PICKLE_BYTES = 32 << 20


class TorchArchive(Protocol):
    """The pickle and the storages of a torch file.

    Notes: every method raises FormatError for what is missing or damaged
    """

    path: str
    where: str

    def pickle(self) -> bytes: ...
    def storage_bytes(self, key: str) -> int: ...
    def storage(self, key: str) -> memoryview: ...
    def offset(self, key: str) -> int:
        """Where a storage begins in its file, for messages."""
        ...

    def seal(self) -> None: ...
    def close(self) -> None: ...


def is_torch_path(path: str) -> bool:
    """Whether this is a zip archive, or a folder with the pickle of an unzipped one."""
    if is_dir(path):
        return unzipped_root(path) is not None
    return read_head(path, 4) == MAGIC


def is_bare_pickle(path: str) -> bool:
    """Whether a file begins with a protocol and an opcode.

    Notes: sizes of 640, 896, … at the beginning of other files have a zero in the opcode's place
    """
    head = read_head(path, 3)
    protocol, opcode = head[1:2], head[2:3]
    return head[:1] == b"\x80" and b"\x02" <= protocol <= b"\x05" and opcode > b"\0"


def unzipped_root(folder: str) -> str | None:
    """The folder that holds data.pkl: this one, or the only one in it."""
    if is_file(os.path.join(folder, _PICKLE)):
        return folder
    inside = [os.path.join(folder, name) for name in list_dir(folder)[:64]]
    roots = [path for path in inside if is_file(os.path.join(path, _PICKLE))]
    return roots[0] if len(roots) == 1 else None


def open_archive(path: str) -> TorchArchive:
    """Open a zip archive, or a folder that is one unzipped.

    Raises:  UnsafeFileError for a bare pickle, FormatError, UnsupportedError for another byte order
    """
    if not is_dir(path) and is_bare_pickle(path):
        raise UnsafeFileError(
            f"{printable(path)}: a bare pickle, as torch wrote before version 1.6; it is not read: "
            "load it with torch, weights_only=True, and torch.save it again"
        )
    if not is_torch_path(path) and (kind := known_kind(read_head(path))):
        raise FormatError(f"{printable(path)}: {kind}")
    archive: ZipArchive | FolderArchive
    archive = FolderArchive(path) if is_dir(path) else ZipArchive(path)
    try:
        _check_byte_order(archive)
    except BaseException:
        archive.close()
        raise
    return archive


def _check_byte_order(archive: ZipArchive | FolderArchive) -> None:
    order = archive.small("byteorder")
    if order is not None and order.strip() != b"little":
        raise UnsupportedError(
            f"{archive.where}: the byte order {ascii(order[:40])[1:]} is not supported; load the "
            "file on a little-endian machine and save it again"
        )


def _check_key(key: str, where: str) -> str:
    if not key or len(key) > 64 or not all(c.isascii() and (c.isalnum() or c in "_-") for c in key):
        raise UnsafeFileError(f"{where}: storage key {ascii(key)[:80]} is no plain name")
    return key


class ZipArchive:
    """A torch file as torch.save writes it: one folder of a zip archive."""

    def __init__(self, path: str) -> None:
        self.path = path
        self._file = MappedFile(path)
        try:
            self.where = self._file.where
            self._zip = ZipFile(self._file)
            self._root = self._find_root()
        except BaseException:
            self._file.close()
            raise

    def _find_root(self) -> str:
        names = self._zip.members
        roots = [name.removesuffix(_PICKLE) for name in names if name.split("/")[1:] == [_PICKLE]]
        strangers = {name.partition("/")[0] + "/" for name in names} - set(roots)
        if len(roots) != 1 or strangers:
            raise FormatError(
                f"{self.where}: a zip archive, but no torch file: one folder with {_PICKLE} is "
                f"wanted, {len(roots)} of {len(roots) + len(strangers)} are"
            )
        return roots[0]

    def small(self, name: str) -> bytes | None:
        """A small member, None if there is none."""
        member = self._zip.members.get(self._root + name)
        return None if member is None else self._zip.read(member, _MAX_PICKLE_BYTES)

    def pickle(self) -> bytes:
        """The bytes of data.pkl."""
        return self._zip.read(self._zip.members[self._root + _PICKLE], _MAX_PICKLE_BYTES)

    def storage_bytes(self, key: str) -> int:
        """Size of a storage."""
        return self._member(key).n_bytes

    def storage(self, key: str) -> memoryview:
        """The bytes of a storage: mapped, or a copy where they are deflated."""
        return self._zip.view(self._member(key))

    def offset(self, key: str) -> int:
        """Where a storage begins in the file."""
        return self._member(key).offset

    def _member(self, key: str) -> Member:
        member = self._zip.members.get(f"{self._root}data/{_check_key(key, self.where)}")
        if member is None:
            raise FormatError(f"{self.where}: storage {key!r} is missing from the archive")
        return member

    def seal(self) -> None:
        """End of reading: check that the file is still the same and give the descriptor back."""
        self._file.seal()

    def close(self) -> None:
        """Drop the mapping; views that others hold stay valid."""
        self._file.close()


class FolderArchive:
    """A torch file that somebody unzipped: data.pkl, and a file for every storage."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.where = printable(path)
        root = unzipped_root(path)
        if root is None:
            raise FormatError(f"{self.where}: no {_PICKLE} in this folder, nor in one inside it")
        self._root = root
        self._home = os.path.realpath(root)
        self._views: dict[str, memoryview] = {}

    def small(self, name: str) -> bytes | None:
        """A small member, None if there is none."""
        path = os.path.join(self._root, name)
        return read_small(path, _MAX_PICKLE_BYTES) if is_file(path) else None

    def pickle(self) -> bytes:
        """The bytes of data.pkl."""
        return read_small(os.path.join(self._root, _PICKLE), _MAX_PICKLE_BYTES)

    def storage_bytes(self, key: str) -> int:
        """Size of a storage."""
        return stat_path(self._path(key)).st_size

    def storage(self, key: str) -> memoryview:
        """The bytes of a storage, mapped."""
        if key not in self._views:
            path = self._path(key)
            if stat_path(path).st_size == 0:
                return memoryview(b"")
            with MappedFile(path) as file:
                self._views[key] = file.slice(0, file.n_bytes, f"storage {key}")
        return self._views[key]

    def offset(self, key: str) -> int:
        """Where a storage begins in its file."""
        return 0

    def _path(self, key: str) -> str:
        path = os.path.join(self._root, "data", _check_key(key, self.where))
        if not os.path.lexists(path):
            raise FormatError(f"{printable(path)}: this storage is missing")
        if os.path.realpath(path) != os.path.join(self._home, "data", key):
            raise UnsafeFileError(f"{printable(path)}: a link that leaves the folder")
        return path

    def seal(self) -> None:
        """Nothing is left open: every storage is mapped as it is asked for."""

    def close(self) -> None:
        """Drop the mappings; views that others hold stay valid."""
        self._views = {}
