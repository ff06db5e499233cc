"""MappedFile: the only place that slices raw file bytes, always within bounds."""

from __future__ import annotations

import mmap
import os
import struct
from contextlib import suppress
from types import TracebackType
from typing import Any, Protocol

from rllama.errors import FormatError
from rllama.formats.files import open_regular, printable, raise_os_error


class ByteSource(Protocol):
    """Bytes by offset, as a MappedFile has them; a TorchFile is one too."""

    path: str
    where: str

    def slice(self, offset: int, n_bytes: int, what: str) -> memoryview: ...
    def read(self, offset: int, n_bytes: int, what: str) -> bytes: ...
    def seal(self) -> None: ...
    def close(self) -> None: ...


def _ask_for_large_pages(mapped: mmap.mmap) -> None:
    """Let Linux read the file in pieces of 2 MB, which it then maps whole: weights are read faster.

    Notes:   no memory is used for it; what the cache already holds in small pages stays so, and a
             kernel or file system that has no such pieces refuses or ignores it
    """
    if hasattr(mmap, "MADV_HUGEPAGE"):
        with suppress(OSError):
            mapped.madvise(mmap.MADV_HUGEPAGE)


class MappedFile:
    """One regular file, mapped read-only.

    Notes:   headers are read by value (`read`), so that a file cut short while we look at it gives
             an error and not a signal; weights are mapped (`slice`) and touched later;
             `close` drops the references, the mapping itself goes with the last view of it
    Raises:  ConfigError if it cannot be opened, FormatError if it is empty or no regular file
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self.where = printable(path)
        self._file = open_regular(path)
        self._map: mmap.mmap | None = None
        self._view: memoryview | None = None
        try:
            self._stat = os.fstat(self._file.fileno())
            self.n_bytes = self._stat.st_size
            if self.n_bytes == 0:
                raise FormatError(f"{self.where}: the file is empty")
            try:
                self._map = mmap.mmap(self._file.fileno(), 0, access=mmap.ACCESS_READ)
            except (OSError, ValueError) as error:
                raise_os_error(path, error)
            _ask_for_large_pages(self._map)
            self._view = memoryview(self._map)
            if self._view.nbytes != self.n_bytes:
                self._raise_changed()
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> MappedFile:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if kind is None:
            self.seal()
        else:
            self.close()

    def require(self, offset: int, n_bytes: int, what: str) -> None:
        """Check that a range lies inside the file. Raises FormatError."""
        if offset < 0 or n_bytes < 0 or offset + n_bytes > self.n_bytes:
            raise FormatError(
                f"{self.where}: {what}: {n_bytes} bytes at offset {offset} end at "
                f"{offset + n_bytes}, beyond the file's {self.n_bytes}; it is truncated or damaged"
            )

    def slice(self, offset: int, n_bytes: int, what: str) -> memoryview:
        """A read-only view of the mapping. Raises FormatError if it leaves the file."""
        self.require(offset, n_bytes, what)
        if self._view is None:
            raise FormatError(f"{self.where}: {what}: the file is closed")
        return self._view[offset : offset + n_bytes]

    def read(self, offset: int, n_bytes: int, what: str) -> bytes:
        """A copy of some bytes. Raises FormatError if they leave the file or it has shrunk."""
        self.require(offset, n_bytes, what)
        parts: list[bytes] = []
        missing = n_bytes
        try:
            self._file.seek(offset)
            while missing:
                part = self._file.read(missing)
                if not part:
                    self._raise_changed()
                parts.append(part)
                missing -= len(part)
        except OSError as error:
            raise_os_error(self.path, error)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def unpack(self, layout: str, offset: int, what: str) -> tuple[Any, ...]:
        """Unpack a `struct` layout at an offset. Raises FormatError."""
        return struct.unpack(layout, self.read(offset, struct.calcsize(layout), what))

    def check_unchanged(self) -> None:
        """Compare size, time and identity with those at opening. Raises FormatError."""
        try:
            now = (os.stat(self.path), os.fstat(self._file.fileno()))
        except OSError:
            self._raise_changed()
        old = self._stat
        for status in now:
            if (status.st_size, status.st_mtime_ns, status.st_ino, status.st_dev) != (
                old.st_size, old.st_mtime_ns, old.st_ino, old.st_dev,
            ):  # fmt: skip
                self._raise_changed()

    def seal(self) -> None:
        """End of reading: check that the file is still the same and give the descriptor back."""
        try:
            self.check_unchanged()
        except BaseException:
            self.close()
            raise
        self._file.close()

    def close(self) -> None:
        """Drop the mapping; views that others hold stay valid."""
        self._file.close()
        self._view = None
        mapping, self._map = self._map, None
        if mapping is not None:
            try:
                mapping.close()
            except BufferError:
                return  # somebody still holds a view; the last one to go unmaps

    def _raise_changed(self) -> None:
        raise FormatError(f"{self.where}: the file changed while it was being read; try again")
