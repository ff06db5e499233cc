"""A reader of pickles that can execute nothing: a closed list of opcodes and of names."""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from rllama.errors import FormatError, UnsafeFileError, UnsupportedError
from rllama.formats.cursor import ByteCursor

_MAX_STEPS = 200_000
_MAX_MEMO = 100_000
_MAX_LINE_BYTES = 256
_MAX_INT_BYTES = 16

# Opcodes that call or look up something, in ways that no file of weights needs.
_UNSAFE = {
    b"i": "INST", b"o": "OBJ", b"\x92": "NEWOBJ_EX", b"\x82": "EXT1", b"\x83": "EXT2",
    b"\x84": "EXT4", b"P": "PERSID", b"\x97": "NEXT_BUFFER", b"\x98": "READONLY_BUFFER",
}  # fmt: skip
_U8, _U16, _I32, _U32, _U64, _F64 = (struct.Struct(f) for f in ("<B", "<H", "<i", "<I", "<Q", ">d"))


@dataclass(frozen=True, slots=True)
class Name:
    """A global that a pickle mentions: its name and nothing behind it."""

    text: str


@dataclass(frozen=True, slots=True, eq=False)
class Namespace:
    """A stand-in for an object that is nothing but attributes."""

    values: dict[str, Any] = field(default_factory=dict)


Build = Callable[[tuple[Any, ...], str], Any]  # arguments, and where for messages


@dataclass(frozen=True, slots=True)
class Words:
    """What a kind of pickle may say.

    Notes:   `builders` make inert data of the arguments of a call; `plain` names may be mentioned;
             `unsupported` are known to be something that is not read, with words for it
    """

    builders: Mapping[str, Build]
    plain: frozenset[str]
    unsupported: Mapping[str, str]
    persistent: Build


class _Mark:
    """Where a tuple, a list of items or of pairs begins on the stack."""


_MARK = _Mark()


def read_pickle(data: bytes, where: str, words: Words) -> Any:
    """The object that a pickle of protocol 2 to 5 spells, in plain containers and stand-ins.

    Notes:   dicts have strings and whole numbers as keys; what comes out may contain itself, so
             it is for looking things up, not for walking
    Raises:  UnsafeFileError for any name or opcode beyond the lists, UnsupportedError for what is
             known but not read, FormatError for anything broken
    """
    return _Reader(data, where, words).run()


class _Reader:
    def __init__(self, data: bytes, where: str, words: Words) -> None:
        self.cursor = ByteCursor(data, where)
        self.where = where
        self.words = words
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}

    def run(self) -> Any:
        first = self.cursor.data[:2]
        if first[:1] != b"\x80":
            raise UnsupportedError(
                f"{self.where}: a pickle of protocol 0 or 1; load it and save it again with "
                "torch.save"
            )
        if not 2 <= first[-1] <= 5:
            raise self.fail(f"pickle protocol {first[-1]} is not known")
        self.cursor.take(2, "protocol")
        for _ in range(_MAX_STEPS):
            opcode = self.cursor.byte("opcode")
            action = _BY_CODE[opcode]
            if action is None:
                if opcode == _STOP:
                    return self.finish()
                raise self.unknown(opcode)
            action(self)
        raise self.fail(f"more than {_MAX_STEPS} opcodes")

    def finish(self) -> Any:
        result = self.pop()
        if self.stack:
            raise self.fail(f"{len(self.stack)} values are left over")
        if self.cursor.remaining:
            raise self.fail(f"{self.cursor.remaining} bytes after the end")
        return result

    def fail(self, problem: str) -> FormatError:
        """The error for a broken pickle, for the caller to raise."""
        return FormatError(f"{self.where}: offset {self.cursor.offset}: {problem}")

    def unsafe(self, problem: str) -> UnsafeFileError:
        """The error for one that wants to do something, for the caller to raise."""
        return UnsafeFileError(
            f"{self.where}: offset {self.cursor.offset}: {problem}; a file of weights has no need "
            "of it, and it is never executed here"
        )

    def unknown(self, opcode: int) -> FormatError:
        """The error for an opcode without a row, for the caller to raise."""
        words = _UNSAFE.get(bytes([opcode]))
        if words is not None:
            return self.unsafe(f"the opcode {words} can run code")
        return self.fail(f"opcode {opcode:#04x} is not known in a file of weights")

    def pop(self) -> Any:
        if not self.stack or self.stack[-1] is _MARK:
            raise self.fail("the stack is empty")
        return self.stack.pop()

    def top(self) -> Any:
        if not self.stack or self.stack[-1] is _MARK:
            raise self.fail("the stack is empty")
        return self.stack[-1]

    def pop_to_mark(self) -> list[Any]:
        for at in range(len(self.stack) - 1, -1, -1):
            if self.stack[at] is _MARK:
                items = self.stack[at + 1 :]
                del self.stack[at:]
                return items
        raise self.fail("a mark is missing")

    def number(self, layout: struct.Struct) -> Any:
        return self.cursor.unpack(layout, "number")[0]

    def push(self, value: Any) -> None:
        self.stack.append(value)

    # ---- values ----

    def text(self, n_bytes: int) -> None:
        try:
            self.push(self.cursor.take(n_bytes, "text").decode("utf-8"))
        except UnicodeDecodeError:
            raise self.fail("a text is not UTF-8") from None

    def long(self, n_bytes: int) -> None:
        if not 0 <= n_bytes <= _MAX_INT_BYTES:
            raise self.fail(f"a whole number of {n_bytes} bytes")
        self.push(int.from_bytes(self.cursor.take(n_bytes, "number"), "little", signed=True))

    def tuple(self, n: int) -> None:
        items = [self.pop() for _ in range(n)]
        self.push(tuple(reversed(items)))

    def append(self, items: list[Any]) -> None:
        target = self.top()
        if type(target) is not list:
            raise self.fail(f"an item for what is {_kind(target)}, no list")
        target.extend(items)

    def set_items(self, items: list[Any]) -> None:
        target = self.top()
        if type(target) is not dict:
            raise self.fail(f"an entry for what is {_kind(target)}, no dictionary")
        if len(items) % 2:
            raise self.fail("a key without a value")
        for key, value in zip(items[::2], items[1::2], strict=True):
            if type(key) not in (str, int):
                raise self.fail(f"a key is {_kind(key)}; only texts and whole numbers are read")
            target[key] = value

    # ---- names and calls ----

    def named(self, module: Any, name: Any) -> None:
        if type(module) is not str or type(name) is not str:
            raise self.fail(f"a global whose name is {_kind(module)} and {_kind(name)}")
        full = f"{module}.{name}"
        if full in self.words.unsupported:
            raise UnsupportedError(
                f"{self.where}: {full}: {self.words.unsupported[full]} are not supported"
            )
        if full not in self.words.builders and full not in self.words.plain:
            raise self.unsafe(f"it names {ascii(full)[:120]}")
        self.push(Name(full))

    def global_name(self) -> None:
        lines = [self.cursor.line(_MAX_LINE_BYTES, "name of a global") for _ in range(2)]
        try:
            self.named(*(line.decode("utf-8") for line in lines))
        except UnicodeDecodeError:
            raise self.fail("the name of a global is not UTF-8") from None

    def stack_global(self) -> None:
        name = self.pop()
        self.named(self.pop(), name)

    def call(self) -> None:
        arguments, function = self.pop(), self.pop()
        builder = self.words.builders.get(function.text) if type(function) is Name else None
        if builder is None:
            called = function.text if type(function) is Name else _kind(function)
            raise self.unsafe(f"it calls {called}")
        if type(arguments) is not tuple:
            raise self.fail(f"the arguments of {function.text} are {_kind(arguments)}, no tuple")
        self.push(builder(arguments, f"{self.where}: {function.text}"))

    def build(self) -> None:
        state, target = self.pop(), self.top()
        if type(state) is not dict:
            raise self.unsafe(f"a state that is {_kind(state)}")
        if type(target) is Namespace:
            target.values.update(state)
        elif type(target) is not dict:  # attributes of an OrderedDict (_metadata) mean nothing here
            raise self.unsafe(f"a state for what is {_kind(target)}")

    def persistent(self) -> None:
        identity = self.pop()
        if type(identity) is not tuple:
            raise self.fail(f"a persistent id is {_kind(identity)}, no tuple")
        self.push(self.words.persistent(identity, f"{self.where}: persistent id"))

    # ---- the memo ----

    def put(self, index: int) -> None:
        if index >= _MAX_MEMO:
            raise self.fail(f"memo entry {index}")
        self.memo[index] = self.top()

    def get(self, index: int) -> None:
        if index not in self.memo:
            raise self.fail(f"memo entry {index} was never set")
        self.push(self.memo[index])


def _kind(value: object) -> str:
    return f"a {type(value).__name__}"


_ACTIONS: dict[bytes, Callable[[_Reader], None]] = {
    b"\x95": lambda r: _check_frame(r, r.number(_U64)),
    b"N": lambda r: r.push(None),
    b"\x88": lambda r: r.push(True),
    b"\x89": lambda r: r.push(False),
    b"K": lambda r: r.push(r.number(_U8)),
    b"M": lambda r: r.push(r.number(_U16)),
    b"J": lambda r: r.push(r.number(_I32)),
    b"G": lambda r: r.push(r.number(_F64)),
    b"\x8a": lambda r: r.long(r.number(_U8)),
    b"\x8b": lambda r: r.long(r.number(_I32)),
    b"X": lambda r: r.text(r.number(_U32)),
    b"\x8c": lambda r: r.text(r.number(_U8)),
    b"\x8d": lambda r: r.text(r.number(_U64)),
    b"B": lambda r: r.push(r.cursor.take(r.number(_U32), "bytes")),
    b"C": lambda r: r.push(r.cursor.take(r.number(_U8), "bytes")),
    b"\x8e": lambda r: r.push(r.cursor.take(r.number(_U64), "bytes")),
    b"}": lambda r: r.push({}),
    b"]": lambda r: r.push([]),
    b")": lambda r: r.push(()),
    b"(": lambda r: r.push(_MARK),
    b"t": lambda r: r.push(tuple(r.pop_to_mark())),
    b"\x85": lambda r: r.tuple(1),
    b"\x86": lambda r: r.tuple(2),
    b"\x87": lambda r: r.tuple(3),
    b"a": lambda r: r.append([r.pop()]),
    b"e": lambda r: r.append(r.pop_to_mark()),
    b"s": lambda r: r.set_items([r.pop(), r.pop()][::-1]),
    b"u": lambda r: r.set_items(r.pop_to_mark()),
    b"c": lambda r: r.global_name(),
    b"\x93": lambda r: r.stack_global(),
    b"R": lambda r: r.call(),
    b"\x81": lambda r: r.call(),
    b"b": lambda r: r.build(),
    b"Q": lambda r: r.persistent(),
    b"q": lambda r: r.put(r.number(_U8)),
    b"r": lambda r: r.put(r.number(_U32)),
    b"\x94": lambda r: r.put(len(r.memo)),
    b"h": lambda r: r.get(r.number(_U8)),
    b"j": lambda r: r.get(r.number(_U32)),
}
_BY_CODE = [_ACTIONS.get(bytes([code])) for code in range(256)]
_STOP = ord(".")


def _check_frame(reader: _Reader, n_bytes: int) -> None:
    if n_bytes > reader.cursor.remaining:
        raise reader.fail(f"a frame of {n_bytes} bytes where {reader.cursor.remaining} are left")
