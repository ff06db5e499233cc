"""GGUF models in several files: which belong together, and whether all of them are there.

A piece is a GGUF with tensors of its own; the first has the keys of the model. Pieces are found by
their names, `name-00001-of-00003.gguf`, in one folder, and say themselves which they are:
`split.no` (from 0), `split.count`, `split.tensors.count` (of all pieces together).
"""

from __future__ import annotations

import os
import re
from contextlib import ExitStack

from rllama.errors import ConfigError, FormatError, UnsafeFileError
from rllama.formats.fields import Fields
from rllama.formats.files import leaves_folder, printable
from rllama.formats.gguf_header import GgufHeader, parse
from rllama.formats.mapped_file import MappedFile

_NAME = re.compile(r"(.+)-([0-9]{5})-of-([0-9]{5})\.gguf")
_MAX_PIECES = 65535


def open_pieces(path: str, stack: ExitStack) -> list[GgufHeader]:
    """The headers of all pieces of the model that `path` belongs to, in their order.

    Notes:   most models are one piece; the stack closes what was opened
    Raises:  FormatError if a piece is missing, is another's or holds what another holds;
             UnsafeFileError if one is a link out of the folder; ConfigError for a wrong name
    """
    header = _open(path, stack)
    count = Fields(header.values, header.where).whole("split.count", 1, low=0, high=_MAX_PIECES)
    if count < 2:
        return [header]
    paths = _piece_paths(path, header, count)
    own = os.path.basename(path)
    pieces = [header if os.path.basename(p) == own else _open(p, stack) for p in paths]
    for index, piece in enumerate(pieces):
        _check_place(piece, index, count)
    _check_tensors(pieces)
    return pieces


def first_piece(name: str) -> str:
    """The name of the first piece where a name is that of a piece, else the name itself."""
    found = _NAME.fullmatch(name)
    return name if found is None else f"{found[1]}-00001-of-{found[3]}.gguf"


def _open(path: str, stack: ExitStack) -> GgufHeader:
    file = MappedFile(path)
    stack.callback(file.close)
    return parse(file)


def _piece_paths(path: str, header: GgufHeader, count: int) -> list[str]:
    folder, name = os.path.split(path)
    found = _NAME.fullmatch(name)
    if found is None or int(found[3]) != count:
        raise ConfigError(
            f"{header.where}: split.count: one of the {count} files of a model; they are found by "
            f"their names, name-00001-of-{count:05}.gguf and so on: this one needs its own back"
        )
    stem = os.path.join(folder, found[1])
    paths: list[str] = []
    for number in range(1, count + 1):
        piece = f"{stem}-{number:05}-of-{count:05}.gguf"
        if not os.path.lexists(piece):
            missing = printable(os.path.basename(piece))
            raise FormatError(
                f"{header.where}: split.count: file {number} of {count}, {missing}, is missing"
            )
        if piece != path and leaves_folder(piece):
            raise UnsafeFileError(f"{printable(piece)}: a link that leaves the folder")
        paths.append(piece)
    return paths


def _check_place(piece: GgufHeader, index: int, count: int) -> None:
    fields = Fields(piece.values, piece.where)
    own_count = fields.whole("split.count", 1, low=0, high=_MAX_PIECES)
    own_index = fields.whole("split.no", 0, low=0, high=_MAX_PIECES)
    if (own_index, own_count) != (index, count):
        raise FormatError(
            f"{piece.where}: split.no {own_index} and split.count {own_count}, but its name says "
            f"{index} (from 0) and {count}: pieces of different models, or a wrong name"
        )


def _check_tensors(pieces: list[GgufHeader]) -> None:
    """Every tensor once, and as many as each piece says there are."""
    homes: dict[str, str] = {}
    for piece in pieces:
        for tensor in piece.tensors:
            if tensor.name in homes:
                raise FormatError(
                    f"{piece.where}: the tensor {tensor.name!r} is also in {homes[tensor.name]}"
                )
            homes[tensor.name] = piece.where
    for piece in pieces:
        said = Fields(piece.values, piece.where).whole("split.tensors.count", len(homes), low=0)
        if said != len(homes):
            raise FormatError(
                f"{piece.where}: split.tensors.count is {said}, but its {len(pieces)} files hold "
                f"{len(homes)} tensors"
            )
