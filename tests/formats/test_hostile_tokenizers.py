"""Every bad tokenizer is refused by a documented error, in one line, quickly, in little memory."""

from __future__ import annotations

import random
import re
from pathlib import Path

import hostile_tokenizers
import pytest
from hostile_case import Case
from test_hostile_files import assert_one_line, bounds, fresh, mutate

from rllama import LLM, SamplingParams, load_tokenizer
from rllama.errors import ConfigError, RllamaError, UnsupportedError
from rllama.tools.inspect_file import inspect_file

CASES = hostile_tokenizers.cases()


def attempt(path: Path) -> RllamaError | None:
    """Load and use a tokenizer within bounds; the documented error, if there was one."""
    with bounds():
        try:
            tokenizer = load_tokenizer(path)
            ids = tokenizer.encode("abc \n <s>\u0301\ud800", parse_special=True)
            pieces = b"".join(map(tokenizer.piece_bytes, ids))
            assert tokenizer.decode_bytes(ids) in (pieces, pieces.removeprefix(b" "))
        except RllamaError as error:
            assert_one_line(error)
            return error
    return None


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_hostile_tokenizer_gets_its_verdict(
    case: Case, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    error = attempt(case.make(tmp_path))
    assert type(error) is (case.error or type(None)), error
    assert error is None or re.search(case.fragment, str(error)), error
    assert capfd.readouterr().err == ""  # no library speaks up, and nothing panics


@pytest.mark.parametrize("n", [150, pytest.param(3000, marks=pytest.mark.slow)])
def test_hostile_mutation_of_a_tokenizer_opens_or_is_refused(n: int, tmp_path: Path) -> None:
    data = hostile_tokenizers.good_text().encode()
    refused = 0
    for number in range(n):
        folder = fresh(tmp_path, number)
        (folder / "tokenizer.json").write_bytes(
            mutate(data, len(data), random.Random(f"tokenizer {number}"))
        )
        refused += attempt(folder / "tokenizer.json") is not None
    assert refused > n // 2


def test_a_model_with_a_tokenizer_of_an_unknown_kind_runs_on_ids(tmp_path: Path) -> None:
    case = next(case for case in CASES if case.id == "K9-gguf_new_pre")
    path = case.make(tmp_path)
    with LLM(path, n_threads=1) as llm:
        assert llm.tokenizer is None
        assert llm.generate([1, 2], SamplingParams(max_new_tokens=2)).token_ids
        with pytest.raises(ConfigError, match=r"token ids alone; .*pre is 'x'; known are"):
            llm.generate("text")
    with pytest.raises(UnsupportedError, match="pre is 'x'"):
        LLM(path, tokenizer_path=path)


def test_inspect_says_why_there_is_no_tokenizer(tmp_path: Path) -> None:
    for variant, kind, says in (("new_pre", "bpe", "known are"), ("model_new", "none", "'rwkv'")):
        case = next(case for case in CASES if case.id.endswith(f"gguf_{variant}"))
        report = inspect_file(case.make(tmp_path))["tokenizer"]
        assert report["kind"] == kind
        assert says in report["error"]
    good = next(case for case in CASES if case.id == "K0-gguf_good")
    report = inspect_file(good.make(tmp_path))["tokenizer"]
    assert (report["kind"], report["pre"], report["pieces"]) == ("bpe", "qwen2", 262)
