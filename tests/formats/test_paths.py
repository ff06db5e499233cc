"""What `open_checkpoint` says about paths that are no model, and files that change underneath."""

from __future__ import annotations

import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from writers import random_model, small_vocab, tiny_config, write_gguf, write_hf, write_llama2c

from rllama.errors import ConfigError, FormatError, RllamaError
from rllama.formats import gguf_split, open_checkpoint, tokenizer_source
from rllama.formats.cursor import Cursor
from rllama.formats.mapped_file import MappedFile
from rllama.formats.tokenizer_files import tokenizer_beside

CFG = tiny_config()
MODEL = random_model(CFG, 4)


@pytest.fixture(autouse=True)
def alarm() -> Iterator[None]:
    """A path that makes us wait for ever kills the test instead of the run."""
    if not hasattr(signal, "SIGALRM") or threading.current_thread() is not threading.main_thread():
        yield
        return
    signal.alarm(20)
    yield
    signal.alarm(0)


def test_missing_file_is_said(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="nope: no such file or folder"):
        open_checkpoint(tmp_path / "nope")
    with pytest.raises(ConfigError, match="no such file or folder"):
        open_checkpoint(tmp_path / "nope" / "deeper")


def test_folder_without_weights_lists_what_was_looked_for(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(FormatError, match=r"no weights.*GGUF.*safetensors.*llama2\.c"):
        open_checkpoint(tmp_path)


def test_folder_with_two_formats_asks_to_choose(tmp_path: Path) -> None:
    write_hf(tmp_path, CFG, MODEL)
    write_gguf(tmp_path / "m.gguf", CFG, MODEL)
    with pytest.raises(ConfigError, match=r"several models.*safetensors, m\.gguf.*name one"):
        open_checkpoint(tmp_path)
    open_checkpoint(tmp_path / "m.gguf").close()
    open_checkpoint(tmp_path / "model.safetensors").close()


def test_folder_with_two_files_of_one_format_asks_to_choose(tmp_path: Path) -> None:
    write_llama2c(tmp_path / "a", CFG, MODEL)
    write_llama2c(tmp_path / "b", CFG, MODEL, 1)
    with pytest.raises(ConfigError, match=r"several models.*\(a, b\)"):
        open_checkpoint(tmp_path)


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_unreadable_file_is_said(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "m", CFG, MODEL)
    path.chmod(0)
    with pytest.raises(ConfigError, match="permission denied"):
        open_checkpoint(path)


def test_refused_by_the_system_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_gguf(tmp_path / "m", CFG, MODEL)

    def refuse(*_: object) -> int:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("rllama.formats.files.os.open", refuse)
    with pytest.raises(ConfigError, match="m: permission denied"):
        open_checkpoint(path)


def _socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))


@pytest.mark.parametrize(
    ("make", "kind"),
    [(os.mkfifo, "a named pipe"), (_socket, "a socket"), (lambda p: p.symlink_to("/dev/zero"),
     "a character device"), (lambda p: p.symlink_to(p), "in a circle")],
    ids=["fifo", "socket", "device", "loop"],
)  # fmt: skip
def test_special_files_are_refused_at_once(
    make: Callable[[Path], object], kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    path = Path("x")
    make(path)
    with pytest.raises(FormatError, match=kind):
        open_checkpoint(path)
    with pytest.raises(FormatError, match=kind):
        tokenizer_source(str(path))


def test_special_files_in_a_folder_are_passed_over(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "dangling").symlink_to("nowhere")
    (tmp_path / "empty").touch()
    write_gguf(tmp_path / "m", CFG, MODEL)
    open_checkpoint(tmp_path).close()


@pytest.mark.parametrize(
    "name", ["two words", "new\nline", "-dash", "ünï", b"\xff\xfe", "\x1b[31m"]
)
def test_odd_names_work_and_errors_stay_on_one_line(name: str | bytes, tmp_path: Path) -> None:
    path = os.path.join(os.fsencode(tmp_path), os.fsencode(name))
    good = write_gguf(tmp_path / "good", CFG, MODEL)
    os.rename(good, path)
    open_checkpoint(os.fsdecode(path)).close()
    with open(path, "wb") as file:
        file.write(b"GGUF\x03")
    with pytest.raises(FormatError) as caught:
        open_checkpoint(os.fsdecode(path))
    assert str(caught.value).isprintable()


@pytest.mark.parametrize("path", ["x" * 4097, "a\0b"], ids=["long", "nul"])
def test_impossible_paths_are_config_errors(path: str) -> None:
    with pytest.raises(ConfigError):
        open_checkpoint(path)


# ---- files that change while they are read ----


def _truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def _grow(path: Path) -> None:
    with path.open("ab") as file:
        file.write(b"more")


def _replace(path: Path) -> None:
    other = path.with_suffix(".new")
    other.write_bytes(path.read_bytes())
    os.replace(other, path)


def _touch(path: Path) -> None:
    os.utime(path, ns=(1, 1))


@pytest.mark.parametrize("change", [_truncate, _grow, _replace, _touch, os.remove])
def test_changed_while_reading_is_said(
    change: Callable[[Path], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_gguf(tmp_path / "m", CFG, MODEL, "F32", small_vocab(CFG.vocab_size))
    parse = gguf_split.parse

    def parse_and_change(file: MappedFile) -> object:
        header = parse(file)
        change(path)
        return header

    monkeypatch.setattr(gguf_split, "parse", parse_and_change)
    with pytest.raises(FormatError, match="changed while it was being read"):
        open_checkpoint(path)


def test_truncated_between_header_reads_gives_an_error_and_no_signal(tmp_path: Path) -> None:
    path = tmp_path / "m"
    path.write_bytes(bytes(3 << 20))
    file = MappedFile(str(path))
    cursor = Cursor(file)
    os.truncate(path, 4096)
    with pytest.raises(FormatError, match="changed"):
        cursor.take(2 << 20, "header")
    file.close()


# ---- the mapping itself ----


def test_mapped_file_slices_stay_within_bounds(tmp_path: Path) -> None:
    path = tmp_path / "m"
    path.write_bytes(b"0123456789")
    file = MappedFile(str(path))
    assert bytes(file.slice(2, 3, "x")) == b"234"
    assert bytes(file.slice(10, 0, "x")) == b""
    for offset, n_bytes in ((8, 3), (-1, 2), (0, -1), (11, 0), (2**64, 1), (0, 2**64)):
        with pytest.raises(FormatError, match="beyond the file's 10"):
            file.slice(offset, n_bytes, "x")
        with pytest.raises(FormatError, match="beyond the file's 10"):
            file.read(offset, n_bytes, "x")
    file.close()


def test_mapped_file_views_are_read_only_and_survive_close(tmp_path: Path) -> None:
    path = tmp_path / "m"
    path.write_bytes(b"0123456789")
    with MappedFile(str(path)) as file:
        view = file.slice(1, 4, "x")
    assert view.readonly
    file.close()
    assert bytes(view) == b"1234"
    with pytest.raises(FormatError, match="the file is closed"):
        file.slice(0, 1, "x")


def test_mapping_goes_with_its_last_view(tmp_path: Path) -> None:
    maps = Path("/proc/self/maps")
    if not maps.exists():
        pytest.skip("needs /proc")
    path = write_gguf(tmp_path / "a file to map", CFG, MODEL)
    checkpoint = open_checkpoint(path)
    view = checkpoint.tensors["embed"]
    checkpoint.close()
    assert path.name in maps.read_text()
    del view
    assert path.name not in maps.read_text()


def test_failed_opening_leaves_no_descriptor_and_no_mapping(tmp_path: Path) -> None:
    fds = Path("/proc/self/fd")
    if not fds.exists():
        pytest.skip("needs /proc")
    path = write_gguf(tmp_path / "m", CFG, MODEL)
    path.write_bytes(path.read_bytes()[:-1])
    before = len(list(fds.iterdir()))
    for _ in range(20):
        with pytest.raises(RllamaError):
            open_checkpoint(path)
    assert len(list(fds.iterdir())) == before


# ---- tokenizer files by content ----


@pytest.mark.parametrize(
    ("data", "error", "text"),
    [
        (b'{"model": 1}', FormatError, "it has no model"),
        (b'{"model": {', FormatError, "not a legal JSON"),
        (b"", FormatError, "too few"),
        (b"hello world, this is no tokenizer", FormatError, "not a known tokenizer"),
        (b"\x0a", FormatError, "too few"),
        (b"GGUF\3\0\0\0", FormatError, "truncated"),
    ],
    ids=["json", "cut", "empty", "text", "tag", "gguf"],
)
def test_tokenizer_file_of_another_kind(
    data: bytes, error: type[Exception], text: str, tmp_path: Path
) -> None:
    path = tmp_path / "t"
    path.write_bytes(data)
    with pytest.raises(error, match=text):
        tokenizer_source(str(path))


def test_tokenizer_of_vocab_and_merges_alone_says_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "vocab.json").write_text("{}")
    assert "merges.txt" not in tokenizer_beside(str(tmp_path), 100)[1]
    (tmp_path / "merges.txt").write_text("#version: 0.2\n")
    found, reason = tokenizer_beside(str(tmp_path), 100)
    assert found is None
    assert "vocab.json and merges.txt alone are not read" in reason
    assert "AutoTokenizer" in reason
    with pytest.raises(ConfigError, match=r"no tokenizer here.*make a tokenizer\.json"):
        tokenizer_source(str(tmp_path))


def test_tokenizer_folder_without_any_lists_the_names(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"tokenizer\.json, tokenizer\.model, tokenizer\.bin"):
        tokenizer_source(str(tmp_path))
