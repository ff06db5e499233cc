"""Opening files that strangers wrote: never hang on a pipe, never leak an OSError."""

from __future__ import annotations

import errno
import io
import os
import stat
from typing import NoReturn

from rllama.errors import ConfigError, FormatError

_KINDS = (
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISFIFO, "a named pipe"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a character device"),
    (stat.S_ISBLK, "a block device"),
)
_OPEN_FLAGS = (
    os.O_RDONLY
    | getattr(os, "O_NONBLOCK", 0)
    | getattr(os, "O_CLOEXEC", 0)
    | getattr(os, "O_NOCTTY", 0)
    | getattr(os, "O_BINARY", 0)
)


def printable(text: str) -> str:
    """`text` on one line and without control characters, for messages."""
    if text.isprintable():
        return text
    return text.encode("unicode_escape", "backslashreplace").decode("ascii")


def raise_os_error(path: str, error: OSError | ValueError) -> NoReturn:
    """Turn what the system said about `path` into ConfigError or FormatError."""
    where = printable(path)
    code = getattr(error, "errno", None)
    if code in (errno.ENOENT, errno.ENOTDIR):
        raise ConfigError(f"{where}: no such file or folder") from error
    if code in (errno.EACCES, errno.EPERM):
        raise ConfigError(f"{where}: permission denied; it cannot be read") from error
    if code == errno.ENAMETOOLONG:
        raise ConfigError("the path is longer than this system allows") from error
    if code == errno.ELOOP:
        raise FormatError(f"{where}: symbolic links that lead in a circle") from error
    if isinstance(error, ValueError):
        raise ConfigError(f"{where}: not a legal path: {error}") from error
    raise FormatError(f"{where}: cannot be read: {error.strerror or error}") from error


def stat_path(path: str) -> os.stat_result:
    """`os.stat` with our errors. Raises ConfigError, FormatError."""
    try:
        return os.stat(path)
    except (OSError, ValueError) as error:
        raise_os_error(path, error)


def _require_regular(path: str, status: os.stat_result) -> None:
    if stat.S_ISREG(status.st_mode):
        return
    kind = next((name for test, name in _KINDS if test(status.st_mode)), "something special")
    raise FormatError(f"{printable(path)}: is {kind}, not a regular file")


def is_dir(path: str) -> bool:
    """Whether `path` is a folder. Raises ConfigError, FormatError if it cannot be looked at."""
    return stat.S_ISDIR(stat_path(path).st_mode)


def is_file(path: str) -> bool:
    """Whether `path` is a regular file; False for whatever cannot be looked at."""
    try:
        return stat.S_ISREG(os.stat(path).st_mode)
    except (OSError, ValueError):
        return False


def open_regular(path: str) -> io.FileIO:
    """Open a regular file for reading, unbuffered.

    Notes:   checked before opening (a pipe would block) and again after (it may have been swapped)
    Raises:  ConfigError if it is missing or unreadable, FormatError if it is no regular file
    """
    _require_regular(path, stat_path(path))
    try:
        file = io.FileIO(os.open(path, _OPEN_FLAGS), "rb", closefd=True)
    except (OSError, ValueError) as error:
        raise_os_error(path, error)
    try:
        _require_regular(path, os.fstat(file.fileno()))
    except BaseException:
        file.close()
        raise
    return file


def leaves_folder(path: str) -> bool:
    """Whether a file is a link to one outside the folder it lies in.

    Notes: the links of a download cache (snapshots/<id>/x -> ../../blobs/y) stay
    """
    real, home = os.path.realpath(path), os.path.realpath(os.path.dirname(path) or ".")
    allowed = [home]
    if os.path.basename(os.path.dirname(home)) == "snapshots":
        allowed.append(os.path.join(os.path.dirname(os.path.dirname(home)), "blobs"))
    return os.path.dirname(real) not in allowed


def read_small(path: str, limit_bytes: int) -> bytes:
    """The whole of a small file. Raises FormatError if it is larger than the limit."""
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        if size > limit_bytes:
            raise FormatError(
                f"{printable(path)}: {size} bytes; more than {limit_bytes} are refused here"
            )
        try:
            return file.read(size)
        except OSError as error:
            raise_os_error(path, error)


def read_head(path: str, n_bytes: int = 64) -> bytes:
    """The first bytes of a file, fewer if it is shorter."""
    with open_regular(path) as file:
        try:
            return file.read(n_bytes)
        except OSError as error:
            raise_os_error(path, error)


def list_dir(path: str) -> list[str]:
    """Names in a folder, sorted. Raises ConfigError, FormatError."""
    try:
        return sorted(os.listdir(path))
    except (OSError, ValueError) as error:
        raise_os_error(path, error)
