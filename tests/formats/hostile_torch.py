"""torch rows of the corpus of bad files: zip archives and what stands in for them."""

from __future__ import annotations

import json
import os
import struct
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

from hostile_case import Case
from torch_writers import (
    RawMember,
    RawZip,
    dictionary,
    meta_shard,
    params_json,
    pickle_of,
    storage,
    tensor,
    text,
    torch_parts,
    torch_zip,
    whole,
    write_meta,
)  # fmt: skip
from writers import random_model, tiny_config

from rllama.errors import (
    ConfigError,
    FormatError,
    UnsafeFileError,
    UnsupportedError,
)

CFG = tiny_config(ffn_dim=32, n_layers=1, vocab_size=64)
MODEL = random_model(CFG, 31)
PART = meta_shard(CFG, MODEL, 0, 1)
ENTRIES, STORAGES = torch_parts(PART, "F32")
FIRST = next(iter(ENTRIES))
PARAMS = json.dumps(params_json(CFG)).encode()

Edit = Callable[[RawZip], object]


def base() -> RawZip:
    """The parts of a correct file, fresh for every case."""
    return torch_zip(pickle_of(dictionary(ENTRIES)), STORAGES, root="consolidated.00")


GOOD = base().to_bytes()
GOOD_PICKLE = pickle_of(dictionary(ENTRIES))


def place(folder: Path, data: bytes) -> Path:
    """A folder with these bytes as its only shard."""
    (folder / "params.json").write_bytes(PARAMS)
    (folder / "consolidated.00.pth").write_bytes(data)
    return folder


def cases() -> list[Case]:
    """All cases about zip archives and unzipped folders."""
    parts = (_containers, _members, _ends, _folders)
    return [case for part in parts for case in part()]


def zipped(
    row: str, variant: str, edit: Edit, error: type[Exception] | None, fragment: str = ""
) -> Case:
    """A case that changes parts of a correct archive before it is laid out."""

    def make(folder: Path) -> Path:
        raw = base()
        edit(raw)
        return place(folder, raw.to_bytes())

    return Case(row, variant, make, error, fragment)


def pickled(
    row: str, variant: str, data: bytes, error: type[Exception] | None, fragment: str = ""
) -> Case:
    """A case with another pickle in a correct archive, whole and stored."""

    def make(folder: Path) -> Path:
        raw = torch_zip(data, STORAGES, root="consolidated.00")
        return place(folder, raw.to_bytes())

    return Case(row, variant, make, error, fragment)


def beside(value: bytes) -> bytes:
    """The correct state dictionary with one more entry, which nobody asks for."""
    return pickle_of(dictionary({**ENTRIES, "more": value}))


def instead(value: bytes) -> bytes:
    """The state dictionary with its first tensor replaced."""
    return pickle_of(dictionary({**ENTRIES, FIRST: value}))


def _containers() -> Iterator[Case]:
    for variant, data, error, words in (
        ("legacy", pickle_of(b"\x8a\x0a" + bytes(10)) * 3, UnsafeFileError, "a bare pickle"),
        ("raw_pickle", GOOD_PICKLE, UnsafeFileError, "a bare pickle"),
        ("protocol_0", b"(dp0\n.", FormatError, "protocol 0 or 1"),
        ("7z", b"7z\xbc\xaf\x27\x1c" + bytes(60), FormatError, "a 7z archive"),
        ("gzip", b"\x1f\x8b\x08" + bytes(60), FormatError, "packed with gzip"),
        ("tar", b"consolidated" + bytes(500), FormatError, "no known model file"),
        ("empty_zip", b"PK\x05\x06" + bytes(18), FormatError, "an empty zip"),
    ):

        def make(folder: Path, data: bytes = data) -> Path:
            path = folder / "model.pth"
            path.write_bytes(data)
            return path

        yield Case("P-15", variant, make, error, words)
    for variant, value in (("list", b"]"), ("text", text("x")), ("number", b"K\x01"),
                           ("tensor", ENTRIES[FIRST])):  # fmt: skip
        yield pickled("P-15", f"holds_{variant}", pickle_of(value), FormatError, "no dictionary")
    yield pickled("P-15", "no_tensors", pickle_of(dictionary({"a": b"N"})), FormatError, "without")
    foreign = pickle_of(dictionary({"fc.weight": ENTRIES[FIRST]}))
    yield pickled("P-15", "foreign_names", foreign, FormatError, "no tensor has a name")
    extra = beside(b"}" + b"(" + text("step") + whole(3) + b"u")
    yield pickled("P-23", "optimizer", extra, None)
    rope = {**ENTRIES, "rope.freqs": ENTRIES["norm.weight"], "x": ENTRIES["norm.weight"]}
    yield pickled("P-23", "rope_freqs", pickle_of(dictionary(rope)), None)
    bias = {**ENTRIES, "layers.0.attention.wq.bias": ENTRIES["norm.weight"]}
    yield pickled("P-23", "bias", pickle_of(dictionary(bias)), UnsupportedError, "biases")
    missing = {key: value for key, value in ENTRIES.items() if "w2" not in key}
    yield pickled("P-23", "missing", pickle_of(dictionary(missing)), ConfigError, "w2.weight")
    twice = {"_orig_mod." + FIRST: ENTRIES[FIRST], **ENTRIES}
    yield pickled("P-23", "prefixed_twice", pickle_of(dictionary(twice)), FormatError, "with and")


def member(raw: RawZip, key: str) -> RawMember:
    return next(m for m in raw.members if m.name.endswith(key.encode()))


def change(key: str, **changes: object) -> Edit:
    def edit(raw: RawZip) -> None:
        for field, value in changes.items():
            setattr(member(raw, key), field, value)

    return edit


def _members() -> Iterator[Case]:
    def deflate(raw: RawZip) -> None:
        for each in raw.members:
            each.method = 8

    yield zipped("P-16", "deflated", deflate, None)
    bomb = RawMember(b"consolidated.00/data/bomb", bytes(8 << 20), 8)
    calls_bomb = instead(tensor(storage("FloatStorage", "bomb", 2 << 20), (64, 32)))

    def add_bomb(raw: RawZip) -> None:
        member(raw, "data.pkl").data = calls_bomb
        raw.members.append(bomb)

    yield zipped("P-16", "bomb", add_bomb, FormatError, "grow to")
    yield zipped("P-16", "bomb_unused", lambda raw: raw.members.append(bomb), None)
    yield zipped("P-16", "encrypted", change("data/0", flags=0x809), UnsupportedError, "encrypted")
    for method in (1, 9, 12, 14, 93, 99, 65535):
        yield zipped("P-16", f"method_{method}", change("data/0", method=method), UnsupportedError)
    lies = change("data/0", method=8, size=7)
    yield zipped("P-16", "inflates_longer", lies, FormatError, "is to have|inflates")
    yield zipped("P-16", "pickle_crc", change("data.pkl", crc=5), FormatError, "checksum")
    yield zipped("P-16", "deflated_crc", change("data/0", method=8, crc=5), FormatError, "checksum")
    yield zipped("P-16", "no_crc", change("data.pkl", crc=0), None)
    yield zipped(
        "P-17", "twins", lambda raw: raw.members.append(raw.members[-1]), FormatError, "two members"
    )
    yield zipped(
        "P-17", "overlap", change("data/1", offset=0), FormatError, "another member|overlap"
    )
    yield zipped(
        "P-17", "same_offset", change("data/1", offset=64), FormatError, "local header|ove"
    )
    yield zipped(
        "P-17", "local_name", change("data/1", local_name=b"consolidated.00/data/2"), FormatError,
        "another member",
    )  # fmt: skip
    for variant, sizes in (
        ("crc", (1, 0, 0)),
        ("size", (0, 4, 4)),
        ("max", (0, 2**32 - 1, 2**32 - 1)),
    ):
        yield zipped(
            "P-17",
            f"local_{variant}",
            change("data/1", local_sizes=sizes),
            FormatError,
            "header says",
        )
    for variant, data in (("zeros", bytes(12)), ("short", b""), ("other", b"\xff" * 12)):
        yield zipped(
            "P-17",
            f"descriptor_{variant}",
            change("data/1", descriptor=data),
            FormatError,
            "descrip",
        )
    wide = change("data/1", descriptor=struct.pack("<LQQ", zlib.crc32(STORAGES["1"]),
                                                   *[len(STORAGES["1"])] * 2))  # fmt: skip
    yield zipped("P-17", "descriptor_wide", wide, None)
    longer = change("data/1", size=len(STORAGES["1"]) + 1)
    yield zipped("P-17", "size_one_more", longer, FormatError, "descriptor|overlap|is to have")
    for variant, key in (("parent", b"../../x"), ("absolute", b"/x"), ("drive", b"C:/x"),
                         ("backslash", b"a\\x"), ("dots", b"consolidated.00/../x"), ("nul", b"x\0"),
                         ("double", b"a//x"), ("dot", b"./x")):  # fmt: skip
        bad = RawMember(key, b"x")
        yield zipped(
            "P-18", variant, lambda raw, b=bad: raw.members.append(b), UnsafeFileError, "leads out"
        )
    yield zipped(
        "P-18", "link", change("data/1", attributes=0o120777 << 16), UnsafeFileError, "link"
    )
    yield zipped("P-18", "not_utf8", change("data/1", name=b"\xff\xfe"), FormatError, "not UTF-8")
    yield zipped("P-18", "no_name", change("data/1", name=b""), UnsafeFileError, "leads out")
    folder = RawMember(b"consolidated.00/data/", b"")
    yield zipped("P-18", "folder", lambda raw: raw.members.append(folder), None)


def _ends() -> Iterator[Case]:
    for variant, fields in (
        ("count_65535", {"count16": 65535}), ("count", {"count": 2**64 - 1}),
        ("count_0", {"count": 0}),
        ("count_one_less", {"count": len(base().members) - 1, "count16": len(base().members) - 1}),
        ("size", {"size": 2**64 - 1}), ("start", {"start": 2**64 - 1}), ("start_0", {"start": 0}),
        ("size32", {"size32": 5}), ("start32", {"start32": 5}), ("at", {"at": 0}),
        ("at_huge", {"at": 2**63}),
    ):  # fmt: skip
        error = None if variant == "count_65535" else FormatError
        yield zipped(
            "P-19", f"end_{variant}", lambda raw, f=fields: raw.end_fields.update(f), error
        )

    def narrow(**fields: int) -> Edit:
        def edit(raw: RawZip) -> None:
            raw.wide_end = False
            raw.end_fields.update(fields)

        return edit

    yield zipped("P-19", "narrow", narrow(), None)
    yield zipped("P-19", "narrow_count_65535", narrow(count16=65535), FormatError, "65535 members")
    yield zipped(
        "P-19", "narrow_start", narrow(start32=2**32 - 1), FormatError, "central directory"
    )
    second = b"PK\x05\x06" + bytes(18)
    yield zipped("P-19", "second_end", lambda raw: setattr(raw, "tail", second), FormatError, "")
    yield zipped("P-19", "comment", lambda raw: setattr(raw, "comment", second), FormatError, "end")
    yield zipped("P-19", "tail", lambda raw: setattr(raw, "tail", b"\0"), FormatError, "end record")
    yield zipped("P-19", "gap", lambda raw: setattr(raw, "gap", b"PK\x01\x02" * 9), None)
    elf = b"PK\x03\x04" + b"\x7fELF" * 15
    yield zipped("P-19", "prepended", lambda raw: setattr(raw, "head", elf), FormatError, "foreign")
    yield zipped("P-19", "wide_member", change("data/1", wide=True), None)
    wide_lie = change("data/1", wide=True, size=2**64 - 1, descriptor=bytes(12))
    yield zipped("P-19", "wide_size", wide_lie, FormatError, "")
    for part in range(1, 16):
        cut = len(GOOD) * part // 16
        yield Case(
            "P-19", f"cut_{part}", lambda f, c=cut: place(f, GOOD[:c]), FormatError, "trunc|zip"
        )
    for last in (1, 21, 22, 42, 98):
        yield Case(
            "P-19", f"less_{last}", lambda f, n=last: place(f, GOOD[:-n]), FormatError, "zip"
        )


def _folders() -> Iterator[Case]:
    def without_pickle(raw: RawZip) -> None:
        raw.members.remove(member(raw, "data.pkl"))

    yield zipped("P-20", "no_pickle", without_pickle, FormatError, "no torch file")
    other = RawMember(b"other/data.pkl", GOOD_PICKLE)
    yield zipped(
        "P-20", "two_folders", lambda raw: raw.members.append(other), FormatError, "no torch"
    )
    stray = RawMember(b"stray", b"x")
    yield zipped(
        "P-20", "stray", lambda raw: raw.members.append(stray), FormatError, "no torch file"
    )
    huge = RawMember(b"consolidated.00/data.pkl", bytes(33 << 20), 8)

    def huge_pickle(raw: RawZip) -> None:
        raw.members[0] = huge

    yield zipped("P-20", "huge_pickle", huge_pickle, FormatError, "are refused here")
    yield zipped(
        "P-20", "stored_as_big", change("data.pkl", size=2**31), FormatError, "overlap|ends|zip"
    )
    for order, error in ((b"big", UnsupportedError), (b"", UnsupportedError), (b"little\n", None)):
        variant = f"byteorder_{order.decode().strip() or 'empty'}"
        yield zipped("P-21", variant, change("byteorder", data=order), error, "byte order")
    no_order: Edit = lambda raw: raw.members.remove(member(raw, "byteorder"))  # noqa: E731
    yield zipped("P-21", "no_byteorder", no_order, None)

    def unzipped(change: Callable[[Path], object]) -> Callable[[Path], Path]:
        def make(folder: Path) -> Path:
            write_meta(folder, CFG, MODEL, "F32", unzipped=True)
            change(folder / "consolidated.00")
            return folder

        return make

    def link_out(root: Path) -> None:
        (root.parent / "elsewhere").write_bytes(STORAGES["0"])
        (root / "data" / "0").unlink()
        os.symlink("../../elsewhere", root / "data" / "0")

    storage_gone = unzipped(lambda root: (root / "data" / "0").unlink())
    yield Case("P-20", "unzipped_gone", storage_gone, FormatError, "is missing")
    cut = unzipped(lambda root: (root / "data" / "0").write_bytes(STORAGES["0"][:-1]))
    yield Case("P-20", "unzipped_cut", cut, FormatError, "is to have")
    empty = unzipped(lambda root: (root / "data" / "0").write_bytes(b""))
    yield Case("P-20", "unzipped_empty", empty, FormatError, "is to have")
    yield Case("P-20", "unzipped_link", unzipped(link_out), UnsafeFileError, "leaves the folder")
    big = unzipped(lambda root: (root / "byteorder").write_bytes(b"big"))
    yield Case("P-21", "unzipped_big", big, UnsupportedError, "byte order")

    def pipe(root: Path) -> None:
        (root / "data" / "0").unlink()
        os.mkfifo(root / "data" / "0")

    yield Case("P-20", "unzipped_pipe", unzipped(pipe), FormatError, "")
