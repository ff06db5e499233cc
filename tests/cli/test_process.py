"""`python -m rllama` as a process: pipes, terminals, signals, closed streams."""

from __future__ import annotations

import os
import pty
import re
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from formats.torch_writers import write_meta
from formats.writers import (
    llama2c_tokenizer_bytes,
    random_model,
    small_vocab,
    tiny_config,
    write_gguf,
)

RLLAMA = [sys.executable, "-m", "rllama"]
DEADLINE_S = 60  # only a hang ever comes near it


@pytest.fixture(scope="module")
def endless_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose context nobody fills in a test."""
    cfg = tiny_config(max_seq_len=1_000_000)
    path = tmp_path_factory.mktemp("endless") / "endless.gguf"
    return write_gguf(path, cfg, random_model(cfg, seed=1), "F32", small_vocab(cfg.vocab_size))


def run(*argv: object, **options: object) -> subprocess.CompletedProcess[bytes]:
    command = [*RLLAMA, *map(str, argv)]
    return subprocess.run(command, capture_output=True, timeout=DEADLINE_S, **options)  # type: ignore[call-overload,no-any-return]


def start(model: Path, *argv: str) -> subprocess.Popen[bytes]:
    """A process in the middle of an endless text."""
    command = [*RLLAMA, "--model-path", str(model), "--ignore-eos", "--seed", "1", *argv]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.read(20)
    return process


def test_process_reads_stdin_and_writes_text_alone(tiny_model: Path) -> None:
    argv = ["--model-path", tiny_model, "--prompt", "-", "--max-new-tokens", "0", "--quiet"]
    done = run(*argv, input="über\n".encode(), env={**os.environ, "LC_ALL": "C"})
    assert (done.returncode, done.stdout, done.stderr) == (0, "über\n".encode(), b"")


def test_process_under_ulimit_v_takes_the_context_that_fits(endless_model: Path) -> None:
    """A cache is mapped whole, so that an address space limit counts pages that nobody touches."""
    limited = ["sh", "-c", 'ulimit -v 420000 && exec "$@"', "sh", *RLLAMA]
    argv = [*limited, "--model-path", str(endless_model), "--max-new-tokens", "2"]
    env = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    done = subprocess.run(argv, capture_output=True, timeout=DEADLINE_S, env=env)
    assert done.returncode == 0, done.stderr
    found = re.search(rb"context (\d+)", done.stderr)
    assert found is not None
    assert 64 <= int(found[1]) < 1_000_000
    argv += ["--max-seq-len", "1000000"]
    done = subprocess.run(argv, capture_output=True, timeout=DEADLINE_S, env=env)
    assert done.returncode == 1
    would = re.search(rb"ulimit -v.*--max-seq-len\) of (\d+) would fit", done.stderr)
    assert would is not None, done.stderr
    argv[-1] = would[1].decode()
    done = subprocess.run(argv, capture_output=True, timeout=DEADLINE_S, env=env)
    assert done.returncode == 0, done.stderr


def test_process_runs_a_meta_checkpoint_by_its_folder_alone(tmp_path: Path) -> None:
    cfg = tiny_config(n_kv_heads=4)
    write_meta(tmp_path / "7B", cfg, random_model(cfg, seed=1), n_shards=2)
    vocab = llama2c_tokenizer_bytes(small_vocab(cfg.vocab_size))
    (tmp_path / "tokenizer.model").write_bytes(vocab)
    argv = ["--model-path", "7B", "--f16", "--prompt", "a", "--max-new-tokens", "4", "--quiet"]
    done = run(*argv, "--temperature", "0", "--ignore-eos", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout.startswith(b"a")
    shown = run("inspect", "7B", cwd=tmp_path)
    assert b"7B: Meta checkpoint" in shown.stdout
    assert b"1 more pieces of columns" in shown.stdout


def test_process_bad_stdin_exits_1(tiny_model: Path) -> None:
    done = run("--model-path", tiny_model, "--prompt", "-", input=b"ab\xff")
    assert done.returncode == 1
    assert done.stderr == b"rllama: error: standard input: not UTF-8 at offset 2\n"


def test_process_closed_pipe_ends_it_quietly_with_141(endless_model: Path) -> None:
    process = start(endless_model, "--quiet")
    assert process.stdout is not None
    process.stdout.close()
    assert process.wait(timeout=DEADLINE_S) == 141
    assert process.stderr is not None
    assert process.stderr.read() == b""
    process.stderr.close()


def test_process_help_into_a_closed_pipe_is_quiet() -> None:
    read_end, write_end = os.pipe()
    os.close(read_end)
    command = [*RLLAMA, "--help"]
    done = subprocess.run(command, stdout=write_end, stderr=subprocess.PIPE, timeout=DEADLINE_S)
    os.close(write_end)
    assert (done.returncode, done.stderr) == (141, b"")


def test_process_ctrl_c_keeps_the_text_and_exits_130(endless_model: Path) -> None:
    process = start(endless_model)
    process.send_signal(signal.SIGINT)
    sent_s = time.monotonic()
    out, err = process.communicate(timeout=DEADLINE_S)
    assert process.returncode == 130
    assert time.monotonic() - sent_s < 10
    assert out.endswith(b"\n")
    assert b"Traceback" not in err
    lines = err.decode().splitlines()
    assert len(lines) == 2
    assert re.match(r"rllama: prompt \d+ tok.*output \d+ tok", lines[1])


def test_process_ctrl_c_while_it_starts_exits_130_without_a_traceback(endless_model: Path) -> None:
    command = [*RLLAMA, "--model-path", str(endless_model), "--prompt", "-"]
    process = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdin is not None
    wait_until_reading(process.pid)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=DEADLINE_S)
    assert (process.returncode, err) == (130, b"")


def wait_until_reading(pid: int) -> None:
    """Until the process sleeps in its read of standard input."""
    deadline_s = time.monotonic() + DEADLINE_S
    while time.monotonic() < deadline_s:
        if "pipe_read" in Path(f"/proc/{pid}/wchan").read_text() or is_reading(pid):
            return
        time.sleep(0.02)
    raise AssertionError("the process never came to read its prompt")


def is_reading(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/syscall").read_text().startswith("0 0x0 ")
    except OSError:
        return False


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
def test_process_full_disk_exits_1(tiny_model: Path) -> None:
    with open("/dev/full", "wb") as full:
        done = subprocess.run(
            [*RLLAMA, "--model-path", str(tiny_model), "--prompt", "a", "--quiet"],
            stdout=full, stderr=subprocess.PIPE, timeout=DEADLINE_S,
        )  # fmt: skip
    assert done.returncode == 1
    assert done.stderr == b"rllama: error: No space left on device\n"


def test_process_without_standard_streams_says_so(tiny_model: Path) -> None:
    script = '"$0" -m rllama --model-path "$1" --prompt a --max-new-tokens 1 --quiet >&- <&-'
    done = subprocess.run(
        ["sh", "-c", script, sys.executable, str(tiny_model)],
        capture_output=True, timeout=DEADLINE_S,
    )  # fmt: skip
    assert done.returncode == 1
    assert done.stderr == b"rllama: error: standard output is closed\n"


def on_terminal(*argv: object, **env: str) -> bytes:
    """What a process sends to a terminal as its stdout."""
    ours, its = pty.openpty()
    command = [*RLLAMA, *map(str, argv)]
    environment = {k: v for k, v in os.environ.items() if k != "NO_COLOR"}
    environment |= {"TERM": "xterm-256color", **env}
    process = subprocess.Popen(command, stdout=its, stderr=subprocess.DEVNULL, env=environment)
    os.close(its)
    got = b""
    while select.select([ours], [], [], DEADLINE_S)[0]:
        try:
            data = os.read(ours, 4096)
        except OSError:  # the other end is closed
            break
        if not data:
            break
        got += data
    os.close(ours)
    assert process.wait(timeout=DEADLINE_S) == 0
    return got


def test_process_colours_probabilities_on_a_terminal_only(tiny_model: Path) -> None:
    argv = ["--model-path", tiny_model, "--prompt", "a", "--max-new-tokens", "3", "--seed", "1"]
    assert b"\x1b[38;5;" in on_terminal(*argv)
    assert b"\x1b" not in on_terminal(*argv, NO_COLOR="1")
    assert b"\x1b" not in run(*argv).stdout


def test_process_shows_escape_sequences_instead_of_sending_them(tiny_model: Path) -> None:
    argv = ["--model-path", tiny_model, "--prompt", "a\x1b]0;b\x07\x9bc", "--max-new-tokens", "0"]
    assert on_terminal(*argv) == rb"a\x1b]0;b\x07\x9bc" + b"\r\n"
    assert run(*argv).stdout == "a\x1b]0;b\x07\x9bc\n".encode()


@pytest.mark.parametrize(
    "code",
    [
        "import rllama; rllama.__version__",
        "import sys; from rllama.cli.main import main; sys.argv = ['rllama', '--help']; main()",
    ],
    ids=["import", "help"],
)
def test_process_does_not_load_numpy_for_nothing(code: str) -> None:
    check = (
        "; heavy = {'numpy', 'sentencepiece', 'tqdm', 'asyncio'} & set(__import__('sys').modules)"
    )
    script = code + check + "; assert not heavy, heavy"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, timeout=DEADLINE_S)
    assert done.returncode == 0, done.stderr.decode()
