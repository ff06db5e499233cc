"""MappedFile and Cursor: the only places that slice raw file bytes, always within bounds."""

from __future__ import annotations

import mmap
import os
import struct
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rllama.errors import FormatError
from rllama.formats.files import open_regular, printable, raise_os_error

_FIRST_READ_BYTES = 1 << 20
MAX_HEADER_BYTES = 256 << 20

_U64 = struct.Struct("<Q")


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


class Cursor:
    """Reads a header of unknown length from front to back, by value and within bounds.

    Notes:   holds a copy of the file's beginning that grows as needed, up to 256 MiB
    Raises:  FormatError where the file ends too early, from every method
    """

    def __init__(self, file: MappedFile) -> None:
        self.file = file
        self.offset = 0
        self._bytes = file.read(0, min(file.n_bytes, _FIRST_READ_BYTES), "header")

    @property
    def remaining(self) -> int:
        """Bytes from here to the end of the file."""
        return self.file.n_bytes - self.offset

    def _grow(self, end: int, what: str) -> None:
        have = len(self._bytes)
        if end <= have:
            return
        self.file.require(self.offset, end - self.offset, what)
        if end > MAX_HEADER_BYTES:
            raise FormatError(
                f"{self.file.where}: {what}: the header is longer than {MAX_HEADER_BYTES} bytes"
            )
        target = min(self.file.n_bytes, max(end, 4 * have), MAX_HEADER_BYTES)
        self._bytes += self.file.read(have, target - have, what)

    def take(self, n_bytes: int, what: str) -> bytes:
        """The next bytes."""
        end = self.offset + n_bytes
        self._grow(end, what)
        data = self._bytes[self.offset : end]
        self.offset = end
        return data

    def unpack(self, layout: struct.Struct, what: str) -> Any:
        """The next value of a one-value `struct` layout."""
        end = self.offset + layout.size
        self._grow(end, what)
        (value,) = layout.unpack_from(self._bytes, self.offset)
        self.offset = end
        return value

    def array(self, dtype: str, count: int, what: str) -> NDArray[Any]:
        """The next `count` numbers."""
        item = np.dtype(dtype)
        return np.frombuffer(self.take(count * item.itemsize, what), dtype=item)

    def string(self, limit_bytes: int, what: str) -> str:
        """The next length-prefixed UTF-8 string."""
        start = self.offset
        length = self.unpack(_U64, what)
        if length > limit_bytes or length > self.remaining:
            raise FormatError(
                f"{self.file.where}: {what} at offset {start}: a string of {length} bytes where at "
                f"most {min(limit_bytes, self.remaining)} are possible"
            )
        try:
            return self.take(length, what).decode("utf-8")
        except UnicodeDecodeError as error:
            raise FormatError(f"{self.file.where}: {what} at offset {start}: {error}") from error

    def skip_strings(self, count: int, what: str) -> NDArray[np.int64]:
        """Step over `count` length-prefixed strings; where each begins, and where the last ends."""
        if count > self.remaining // 8:
            raise FormatError(
                f"{self.file.where}: {what}: {count} strings cannot fit into the remaining "
                f"{self.remaining} bytes"
            )
        starts = self._guess_starts(count, what)
        if starts is None:
            starts = self._walk_starts(count, what)
        return starts

    def _guess_starts(self, count: int, what: str) -> NDArray[np.int64] | None:
        """The lengths found as a byte before seven zeros, if that explains the chain exactly.

        Notes: five times as fast as walking; long strings or zeros inside defeat it
        """
        window = min(24 * count + 4096, self.remaining)
        if not 64 <= count <= 1 << 19 or self.offset + window > MAX_HEADER_BYTES:
            return None
        self._grow(self.offset + window, what)
        data = np.frombuffer(self._bytes, dtype=np.uint8)[self.offset : self.offset + window]
        zero = data == 0
        run = zero[1:-6].copy()
        for shift in range(2, 8):
            run &= zero[shift : run.size + shift]
        starts = np.flatnonzero(run)[:count]
        ends = starts + 8 + data[starts]
        chained = starts.size == count and starts[0] == 0 and ends[-1] <= window
        if not chained or not np.array_equal(ends[:-1], starts[1:]):
            return None
        bounds = np.append(starts, ends[-1]) + self.offset
        self.offset = int(bounds[-1])
        return bounds

    def _walk_starts(self, count: int, what: str) -> NDArray[np.int64]:
        unpack, data, at = _U64.unpack_from, self._bytes, self.offset
        starts: list[int] = []
        add = starts.append
        while len(starts) < count:
            try:
                for _ in range(count - len(starts)):
                    length = unpack(data, at)[0]
                    add(at)
                    at += 8 + length
            except (struct.error, OverflowError, IndexError):
                self._grow(at + 8, what)
                data = self._bytes
        self._grow(at, what)
        self.offset = at
        return np.array([*starts, at], dtype=np.int64)

    def strings_at(self, bounds: NDArray[np.int64], what: str) -> list[str]:
        """The strings that `skip_strings` has stepped over."""
        data = self._bytes
        begins, ends = (bounds[:-1] + 8).tolist(), bounds[1:].tolist()
        try:
            return [data[begin:end].decode() for begin, end in zip(begins, ends, strict=True)]
        except UnicodeDecodeError:
            for index, (begin, end) in enumerate(zip(begins, ends, strict=True)):
                self._require_utf8(data[begin:end], f"{what}: entry {index} at offset {begin}")
            raise

    def _require_utf8(self, data: bytes, what: str) -> None:
        try:
            data.decode()
        except UnicodeDecodeError as error:
            raise FormatError(f"{self.file.where}: {what} is not UTF-8: {error.reason}") from error
