"""ZipFile: the members of a zip archive, as mapped bytes where they are stored plainly."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NoReturn

from rllama.errors import FormatError, MemoryPlanError, UnsafeFileError, UnsupportedError
from rllama.formats.cursor import ByteCursor
from rllama.formats.files import printable
from rllama.formats.mapped_file import MappedFile
from rllama.memory import available_memory

MAGIC = b"PK\x03\x04"
_MAX_MEMBERS = 200_000
_MAX_DIRECTORY_BYTES = 64 << 20
_MAX_RATIO = 100  # weights hardly shrink; what grows more than this is a bomb
_STORED, _DEFLATED = 0, 8
_ENCRYPTED, _HAS_DESCRIPTOR, _UTF8 = 0x1, 0x8, 0x800
_LINK = 0o120000

_END = struct.Struct("<4s4H2LH")
_LOCATOR = struct.Struct("<4sLQL")
_END64 = struct.Struct("<4sQ2H2L4Q")
_CENTRAL = struct.Struct("<4s6H3L5H2L")
_LOCAL = struct.Struct("<4s5H3L2H")
_EXTRA = struct.Struct("<2H")
_MAX16, _MAX32 = 0xFFFF, 0xFFFFFFFF


@dataclass(frozen=True, slots=True)
class Member:
    """One member as the central directory has it; `offset` is that of its payload.

    Units: stored_bytes in the file, n_bytes once inflated
    """

    name: str
    method: int
    crc32: int
    stored_bytes: int
    n_bytes: int
    offset: int


@dataclass(frozen=True, slots=True)
class _Entry:
    """A record of the central directory."""

    name: bytes
    flags: int
    method: int
    crc32: int
    stored_bytes: int
    n_bytes: int
    header_offset: int


class ZipFile:
    """The members of a zip or zip64 archive in a mapped file.

    Notes:   nothing is ever written anywhere. Where central directory, local headers and data
             descriptors disagree, or two readers could see different members, the file is refused;
             checksums are compared for what is read by value (0: the writer left them out)
    Raises:  FormatError, UnsafeFileError for names that lead out of a folder, UnsupportedError for
             encryption, several disks and methods other than stored and deflated
    """

    def __init__(self, file: MappedFile) -> None:
        self.file = file
        self.where = file.where
        self._inflated_bytes = 0
        count, offset, n_bytes = self._find_directory()
        entries = list(self._entries(count, offset, n_bytes))
        self.members: dict[str, Member] = {}
        for entry, end in self._with_ends(entries, offset):
            name = self._name(entry.name)
            if name in self.members:
                self._fail(f"two members are called '{printable(name)}'")
            if not name.endswith("/"):
                self.members[name] = self._locate(entry, name, end)

    def read(self, member: Member, limit_bytes: int) -> bytes:
        """A small member by value. Raises FormatError if it is larger than the limit."""
        where = f"member '{printable(member.name)}'"
        if member.n_bytes > limit_bytes:
            self._fail(f"{where}: {member.n_bytes} bytes; more than {limit_bytes} are refused here")
        if member.method == _DEFLATED:
            return self._inflate(member)
        data = self.file.read(member.offset, member.n_bytes, where)
        self._check_crc(member, data)
        return data

    def view(self, member: Member) -> memoryview:
        """The bytes of a member: mapped, or a copy where they are deflated."""
        if member.method == _DEFLATED:
            return memoryview(self._inflate(member))
        return self.file.slice(member.offset, member.n_bytes, f"'{printable(member.name)}'")

    def _fail(self, problem: str) -> NoReturn:
        raise FormatError(f"{self.where}: {problem}; the zip archive is damaged")

    # ---- the end records ----

    def _find_directory(self) -> tuple[int, int, int]:
        """Number of members, offset and size of the central directory."""
        at = self.file.n_bytes - _END.size
        if at < 0:
            self._fail(f"{self.file.n_bytes} bytes hold no archive")
        magic, disk, first_disk, here, count, n_bytes, offset, comment = self.file.unpack(
            _END.format, at, "end record"
        )
        if magic != b"PK\x05\x06" or comment:
            self._fail("it does not end with the end record of a zip archive (truncated?)")
        if disk not in (0, _MAX16) or first_disk not in (0, _MAX16) or here != count:
            raise UnsupportedError(f"{self.where}: a zip archive over several disks")
        end = at
        wide = self._find_wide(at)
        if wide is not None:
            short = ((count, _MAX16), (n_bytes, _MAX32), (offset, _MAX32))
            for (value, unset), stated in zip(short, wide[:3], strict=True):
                if value not in (unset, stated):
                    self._fail(f"its end records say {value} and {stated}")
            count, n_bytes, offset, end = wide
        if offset + n_bytes != end:
            self._fail(
                f"the central directory at {offset} of {n_bytes} bytes does not end at {end}"
            )
        if count > min(_MAX_MEMBERS, n_bytes // _CENTRAL.size) or n_bytes > _MAX_DIRECTORY_BYTES:
            self._fail(f"{count} members in a central directory of {n_bytes} bytes")
        return count, offset, n_bytes

    def _find_wide(self, at: int) -> tuple[int, int, int, int] | None:
        """What a zip64 end record says: members, bytes, offset; and where it begins itself."""
        at -= _LOCATOR.size
        if at < 0:
            return None
        magic, disk, start, disks = self.file.unpack(_LOCATOR.format, at, "zip64 locator")
        if magic != b"PK\x06\x07":
            return None
        if start != at - _END64.size or disk or disks != 1:
            self._fail(f"the zip64 end record is not at {start}")
        magic, size, _, _, disk, first_disk, here, count, n_bytes, offset = self.file.unpack(
            _END64.format, start, "zip64 end record"
        )
        if magic != b"PK\x06\x06" or size != _END64.size - 12 or disk or first_disk:
            self._fail(f"no zip64 end record at {start}")
        if here != count:
            self._fail(f"{here} and {count} members in one end record")
        return count, n_bytes, offset, start

    # ---- the central directory ----

    def _entries(self, count: int, offset: int, n_bytes: int) -> Iterator[_Entry]:
        data = self.file.read(offset, n_bytes, "central directory")
        cursor = ByteCursor(data, f"{self.where}: central directory")
        for _ in range(count):
            yield self._entry(cursor)
        if cursor.remaining:
            self._fail(f"{cursor.remaining} bytes after the {count} records of its directory")

    def _entry(self, cursor: ByteCursor) -> _Entry:
        (magic, _, _, flags, method, _, _, crc32, stored, n_bytes, n_name, n_extra, n_comment,
         disk, _, attributes, header) = cursor.unpack(_CENTRAL, "record")  # fmt: skip
        if magic != b"PK\x01\x02":
            self._fail("a record of its central directory has no signature")
        name = cursor.take(n_name, "name")
        wide = _wide_numbers(cursor.take(n_extra, "extra fields"), cursor.where)
        cursor.take(n_comment, "comment")
        shown = printable(name.decode("utf-8", "replace"))
        if attributes >> 16 & 0o170000 == _LINK:
            raise UnsafeFileError(f"{self.where}: member '{shown}' is a link")
        if flags & _ENCRYPTED or method not in (_STORED, _DEFLATED) or disk not in (0, _MAX16):
            raise UnsupportedError(
                f"{self.where}: member '{shown}' is encrypted or packed with method {method}; only "
                "stored and deflated members are read"
            )
        n_bytes, stored, header = (
            next(wide, _MAX32) if value == _MAX32 else value for value in (n_bytes, stored, header)
        )
        return _Entry(name, flags, method, crc32, stored, n_bytes, header)

    def _name(self, raw: bytes) -> str:
        try:
            name = raw.decode("utf-8")
        except UnicodeDecodeError:
            self._fail(f"the name of a member, {ascii(raw[:60])[1:]}, is not UTF-8")
        parts = name.removesuffix("/").split("/")
        if any(part in ("", ".", "..") for part in parts) or any(c in name for c in "\\\x00:"):
            raise UnsafeFileError(
                f"{self.where}: member '{printable(name)[:200]}' leads out of its folder"
            )
        return name

    # ---- the local headers ----

    def _with_ends(self, entries: list[_Entry], directory: int) -> Iterator[tuple[_Entry, int]]:
        """Entries in the order of their headers, each with the offset that it may not reach."""
        ordered = sorted(entries, key=lambda entry: entry.header_offset)
        if ordered and ordered[0].header_offset != 0:
            self._fail(f"{ordered[0].header_offset} foreign bytes before its first member")
        for entry, following in zip(ordered, [*ordered[1:], None], strict=True):
            yield entry, directory if following is None else following.header_offset

    def _locate(self, entry: _Entry, name: str, end: int) -> Member:
        """Where a member's payload is, by its local header, which must agree with the directory."""
        at, shown = entry.header_offset, f"member '{printable(name)}'"
        magic, _, flags, method, _, _, crc32, stored, n_bytes, n_name, n_extra = self.file.unpack(
            _LOCAL.format, at, f"{shown}: local header"
        )
        rest = self.file.read(at + _LOCAL.size, n_name + n_extra, f"{shown}: local header")
        if magic != MAGIC or rest[:n_name] != entry.name or method != entry.method:
            self._fail(f"{shown}: its local header at {at} is another member's")
        if flags & _ENCRYPTED:
            raise UnsupportedError(f"{self.where}: {shown} is encrypted")
        wide = _wide_numbers(rest[n_name:], f"{self.where}: {shown}")
        n_bytes, stored = (
            next(wide, _MAX32) if value == _MAX32 else value for value in (n_bytes, stored)
        )
        later = flags & _HAS_DESCRIPTOR and not (crc32 or stored or n_bytes)
        said, known = (crc32, stored, n_bytes), (entry.crc32, entry.stored_bytes, entry.n_bytes)
        if not later and said != known:
            self._fail(f"{shown}: its local header says {said}, the central directory {known}")
        if method == _STORED and entry.stored_bytes != entry.n_bytes:
            self._fail(f"{shown}: stored in {entry.stored_bytes} bytes, but has {entry.n_bytes}")
        offset = at + _LOCAL.size + n_name + n_extra
        if offset + entry.stored_bytes > end:
            self._fail(
                f"{shown}: {entry.stored_bytes} bytes at {offset} overlap what begins at {end}"
            )
        if flags & _HAS_DESCRIPTOR:
            self._check_descriptor(entry, offset + entry.stored_bytes, end, shown)
        return Member(name, method, entry.crc32, entry.stored_bytes, entry.n_bytes, offset)

    def _check_descriptor(self, entry: _Entry, at: int, end: int, shown: str) -> None:
        """The sizes once more, behind the payload: 32 or 64 bits wide, signed or not."""
        data = self.file.read(at, min(24, end - at), f"{shown}: data descriptor")
        numbers = (entry.crc32, entry.stored_bytes, entry.n_bytes)
        wide = struct.pack("<LQQ", *numbers)
        forms = [wide]
        if max(numbers) <= _MAX32:
            forms.append(struct.pack("<LLL", *numbers))
        if not any(data.startswith((b"PK\x07\x08" + form, form)) for form in forms):
            self._fail(f"{shown}: its data descriptor at {at} says something else")

    # ---- deflated members ----

    def _inflate(self, member: Member) -> bytes:
        where = f"member '{printable(member.name)}'"
        if member.n_bytes > max(_MAX_RATIO * member.stored_bytes, 1 << 20):
            self._fail(
                f"{where}: {member.stored_bytes} bytes that grow to {member.n_bytes}; more than "
                f"{_MAX_RATIO} times is refused"
            )
        self._inflated_bytes += member.n_bytes
        have = available_memory()
        if member.n_bytes > 1 << 24 and self._inflated_bytes > have.n_bytes // 2:
            raise MemoryPlanError(
                f"{self.where}: deflated members are copied; {self._inflated_bytes / 1e9:.2f} GB "
                f"of them is more than half of what is there ({have.limit}); unpack the archive"
            )
        packed = self.file.read(member.offset, member.stored_bytes, where)
        inflater = zlib.decompressobj(-zlib.MAX_WBITS)
        try:
            data = inflater.decompress(packed, member.n_bytes + 1)
        except zlib.error as error:
            self._fail(f"{where}: {error}")
        if len(data) != member.n_bytes or not inflater.eof or inflater.unused_data:
            self._fail(f"{where}: inflates to something else than {member.n_bytes} bytes")
        self._check_crc(member, data)
        return data

    def _check_crc(self, member: Member, data: bytes) -> None:
        if member.crc32 and zlib.crc32(data) != member.crc32:
            self._fail(f"member '{printable(member.name)}': its checksum is wrong")


def _wide_numbers(extra: bytes, where: str) -> Iterator[int]:
    """The 64-bit numbers of a zip64 extra field, in order."""
    cursor = ByteCursor(extra, f"{where}: extra fields")
    numbers: tuple[int, ...] = ()
    while cursor.remaining >= _EXTRA.size:
        kind, n_bytes = cursor.unpack(_EXTRA, "extra field")
        data = cursor.take(n_bytes, "extra field")
        if kind == 1:
            numbers = struct.unpack(f"<{n_bytes // 8}Q", data[: n_bytes // 8 * 8])
    return iter(numbers)
