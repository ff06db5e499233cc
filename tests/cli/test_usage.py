"""Options, help, exit codes and the one line that says what is wrong; inside this process."""

from __future__ import annotations

import io
import json
import os
import re
from pathlib import Path

import pytest
from formats.family_writers import hf_numbers, write_family_hf
from formats.writers import random_model, small_vocab, tiny_config, write_gguf
from models.families import FAMILIES, random_family

import rllama
from rllama import LLM, SamplingParams
from rllama.cli.main import COMMANDS, main
from rllama.memory import Available
from rllama.yardstick import save_bandwidth

HELP = Path(__file__).parent / "help.txt"


def run(capsys: pytest.CaptureFixture[str], *argv: object) -> tuple[int, str, str]:
    """Exit code, stdout, stderr."""
    exit_code = main([str(word) for word in argv])
    out, err = capsys.readouterr()
    return exit_code, out, err


def assert_one_line(err: str) -> None:
    assert err.startswith("rllama: error: ")
    assert err.count("\n") == 1
    assert err.endswith("\n")
    assert len(err) < 600


# ---- help ----


def test_help_is_stable(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    exit_code, out, err = run(capsys, "--help")
    assert (exit_code, err) == (0, "")
    assert out == HELP.read_text()


@pytest.mark.parametrize("command", list(COMMANDS))
def test_help_of_every_command(capsys: pytest.CaptureFixture[str], command: str) -> None:
    exit_code, out, _ = run(capsys, command, "--help")
    assert exit_code == 0
    assert f"usage: rllama {command}" in out
    assert "MODEL" in out
    assert "--model-path" in out


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(capsys, "--version") == (0, f"rllama {rllama.__version__}\n", "")


def test_no_arguments_shows_help_and_is_a_usage_error(capsys: pytest.CaptureFixture[str]) -> None:
    exit_code, out, err = run(capsys)
    assert (exit_code, out) == (2, "")
    assert err.startswith("usage: rllama")


# ---- wrong usage: 2 ----

USAGE = [
    (["--temperatur", "1"], "unrecognized arguments: --temperatur"),
    (["--temp", "1"], "unrecognized arguments: --temp 1; did you mean --temperature?"),
    (["-p", "x", "-n=3"], "did you mean --prompt, --max-new-tokens?"),
    (["-m", "x"], "did you mean --model-path?"),
    (["--model", "x"], "did you mean --model-path?"),
    (["inspect", "-p", "x"], "unrecognized arguments: -p (`rllama inspect"),
    (["--chat"], "--chat needs a message: --prompt"),
    (["--chat", "--prompt", "x", "--parse-special"], "--parse-special is for prompts"),
    (["--prompt", "x", "--system", "y"], "are for --chat"),
    (["--chat", "--prompt", "x", "--template-kwargs", "[1]"], "'[1]' is not a JSON object"),
    (["--chat", "--prompt", "x", "--template-kwargs", "{"], "'{' is not a JSON object"),
    (["--temperature"], "expected one argument"),
    (["--temperature", "hot"], "'hot' is not a number"),
    (["--temperature", "nan"], "temperature must be a number"),
    (["--temperature", "inf"], "temperature must be a number"),
    (["--temperature", "-1"], "temperature must be a number from 0"),
    (["--top-k", "-1"], "top_k must be a whole number"),
    (["--top-k", "1e3"], "'1e3' is not a whole number"),
    (["--top-k", "9" * 5000], "is not a whole number"),
    (["--top-p", "0"], "top_p must be a number above 0"),
    (["--top-p", "1.5"], "top_p must be"),
    (["--min-p", "2"], "min_p must be"),
    (["--repetition-penalty", "0"], "repetition_penalty must be"),
    (["--seed", "-1"], "seed must be a whole number"),
    (["--seed", str(2**64)], "seed must be"),
    (["--max-new-tokens", "-5"], "max_new_tokens must be"),
    (["--stop", ""], "stop texts must be non-empty"),
    (["--quantize", "q9"], "'q9' is neither a kind (q8_0, q4_0"),
    (["--max-threads", "0"], "'0' is not between 1"),
    (["--max-threads=-1"], "'-1' is not between 1"),
    (["--max-threads", "1000000000"], "number of threads must be 1 to"),
    (["--max-threads", "abc"], "'abc' is not a whole number"),
    (["--max-seq-len", "0"], "'0' is not between 1"),
    (["--max-seq-len", str(2**31)], "is not between 1"),
    (["--max-seq-len", "5000"], "beyond the 4096 positions"),
    (["--kv-dtype", "q2"], "invalid choice: 'q2'"),
    (["--isa", "mmx"], "unknown ISA level 'mmx'"),
    (["--prompt", "a", "--prompt-file", "b"], "not allowed with"),
    (["--prompt", "a\udcff"], "the prompt is not UTF-8 at character 1"),
    (["--model-path", ""], "the path is empty"),
    (["run", "x", "--model-path", "y"], "two different models"),
    (["run", "x", "y"], "unrecognized arguments: y"),
    (["run", "-n", "-1"], "-n is a count from 0"),
    (["run", "-n", "1", "--max-new-tokens", "2"], "excludes --max-new-tokens"),
    (["run", "-t", "-1"], "temperature must be a number from 0"),
    (["-t", "1"], "unrecognized arguments: -t 1"),
    (["inpect"], "did you mean 'inspect'"),
    (["frobnicate"], "there are run, inspect"),
    (["inspect", "--cpu", "x"], "--cpu is about this machine"),
]


@pytest.mark.parametrize(("argv", "message"), USAGE, ids=[" ".join(a)[:40] for a, _ in USAGE])
def test_usage_error_is_one_line_and_exit_2(
    capsys: pytest.CaptureFixture[str], tiny_model: Path, argv: list[str], message: str
) -> None:
    if argv[0].startswith("-") and "--model-path" not in argv:
        argv = ["--model-path", str(tiny_model), *argv]
    exit_code, out, err = run(capsys, *argv)
    assert (exit_code, out) == (2, "")
    assert_one_line(err)
    assert message in err


def test_command_that_is_a_file_says_how_to_run_it(
    capsys: pytest.CaptureFixture[str], tiny_model: Path
) -> None:
    exit_code, _, err = run(capsys, tiny_model)
    assert exit_code == 2
    assert f"rllama --model-path {tiny_model}" in err


# ---- everything else that is wrong: 1 ----


def test_missing_and_foreign_models_exit_1(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "empty").write_bytes(b"")
    (tmp_path / "foreign").write_bytes(b"%PDF-1.7 " * 100)
    (tmp_path / "folder").mkdir()
    for name in ("missing", "empty", "foreign", "folder", "-dash", "new\nline", "x" * 5000):
        path = tmp_path / name
        exit_code, out, err = run(capsys, "--model-path", path)
        assert (exit_code, out) == (1, ""), name
        assert_one_line(err)
        exit_code, out, err = run(capsys, "inspect", path)
        assert (exit_code, out) == (1, ""), name
        assert_one_line(err)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_unreadable_model_exits_1(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    path = tmp_path / "locked.gguf"
    path.write_bytes(b"GGUF")
    path.chmod(0)
    exit_code, _, err = run(capsys, "--model-path", path)
    assert exit_code == 1
    assert "permission denied" in err


def test_prompt_beyond_the_context_exits_1_and_says_by_how_much(
    capsys: pytest.CaptureFixture[str], tiny_model: Path
) -> None:
    argv = ["--model-path", tiny_model, "--max-seq-len", "8", "--prompt", "x9" * 20]
    exit_code, out, err = run(capsys, *argv)
    assert (exit_code, out) == (1, "")
    assert_one_line(err)
    assert re.search(r"the prompt has \d+ tokens, \d+ more than the context of 8", err)


def test_no_memory_exits_1_with_need_have_and_option(
    capsys: pytest.CaptureFixture[str], tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rllama.loader.available_memory", lambda: Available(1 << 20, "a test"))
    exit_code, _, err = run(capsys, "--model-path", tiny_model, "--max-seq-len", "4096")
    assert exit_code == 1
    assert_one_line(err)
    assert re.search(r"needed.*1\.0 MB there \(a test\)", err)


def test_unexpected_error_is_one_line_too(
    capsys: pytest.CaptureFixture[str], tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*args: object, **kwargs: object) -> None:
        raise ZeroDivisionError("a\nb")

    monkeypatch.setattr("rllama.llm.load", broken)
    exit_code, _, err = run(capsys, "--model-path", tiny_model)
    assert exit_code == 1
    assert_one_line(err)
    assert "internal error: ZeroDivisionError" in err
    monkeypatch.setenv("RLLAMA_DEBUG_TRACEBACK", "1")
    assert "Traceback" in run(capsys, "--model-path", tiny_model)[2]


# ---- prompts ----


def test_prompt_file_loses_one_final_newline(
    capsys: pytest.CaptureFixture[str], tiny_model: Path, tmp_path: Path
) -> None:
    path = tmp_path / "prompt.txt"
    argv = ["--model-path", tiny_model, "--prompt-file", path, "--max-new-tokens", "0", "--quiet"]
    for text, shown in (
        ("a é\n\n", "a é\n"),
        ("ab\r\n", "ab"),
        ("ab", "ab"),
        ("", ""),
        ("\ufeffab", "ab"),
    ):
        path.write_text(text, encoding="utf-8", newline="")
        assert run(capsys, *argv) == (0, shown + "\n", "")


@pytest.mark.parametrize("option", ["--prompt", "--prompt-file"])
def test_prompt_dash_reads_standard_input(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tiny_model: Path,
    option: str,
) -> None:
    argv = ["--model-path", tiny_model, option, "-", "--max-new-tokens", "0", "--quiet"]
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"the sea\n")))
    assert run(capsys, *argv) == (0, "the sea\n", "")
    monkeypatch.setattr("sys.stdin", None)
    exit_code, _, err = run(capsys, *argv)
    assert exit_code == 2
    assert_one_line(err)
    assert "standard input is closed" in err


def test_prompt_file_that_cannot_be_used_exits_1(
    capsys: pytest.CaptureFixture[str], tiny_model: Path, tmp_path: Path
) -> None:
    latin = tmp_path / "latin.txt"
    latin.write_bytes(b"caf\xe9")
    for path, message in (
        (tmp_path / "missing.txt", "No such file"),
        (tmp_path, "Is a directory"),
        (latin, "not UTF-8 at offset 3"),
    ):
        exit_code, _, err = run(capsys, "--model-path", tiny_model, "--prompt-file", path)
        assert exit_code == 1
        assert_one_line(err)
        assert message in err


# ---- what comes out ----


def test_tokenizer_much_smaller_than_the_model_is_pointed_out(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    cfg = tiny_config(vocab_size=512)
    for n_pieces, is_warned in ((500, False), (288, True)):
        vocab = small_vocab(n_pieces)
        path = write_gguf(tmp_path / "m.gguf", cfg, random_model(cfg, seed=1), "F32", vocab)
        exit_code, _, err = run(capsys, "--model-path", path, "--max-new-tokens", "1")
        assert exit_code == 0
        assert (
            "288 tokens for a model with 512; is it this model's tokenizer?" in err
        ) is is_warned


def test_tokenizer_of_another_model_must_be_named(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    cfg = tiny_config(vocab_size=2048)
    path = write_gguf(tmp_path / "m.gguf", cfg, random_model(cfg, seed=1), "F32", small_vocab(300))
    argv = ["--model-path", path, "--max-new-tokens", "1"]
    exit_code, _, err = run(capsys, *argv)
    assert exit_code == 1
    assert_one_line(err)
    assert "300 tokens for a model with 2048: not this model's tokenizer" in err
    exit_code, _, err = run(capsys, *argv, "--tokenizer-path", path)
    assert exit_code == 0
    assert "is it this model's tokenizer?" in err


def test_names_of_special_tokens_are_text_unless_asked_for(
    capsys: pytest.CaptureFixture[str], tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[list[int]] = []
    original = LLM.stream

    def spy(self: LLM, prompt: list[int], *args: object, **more: object) -> object:
        seen.append(prompt)
        return original(self, prompt, *args, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(LLM, "stream", spy)
    argv = ["--model-path", tiny_model, "--max-new-tokens", "0", "--prompt"]
    hint = "</s> in the prompt is text; with --parse-special it is the special token"
    assert hint in run(capsys, *argv, "a</s>")[2]
    assert hint not in run(capsys, *argv, "a</s>", "--parse-special")[2]
    assert hint not in run(capsys, *argv, "a s")[2]
    assert run(capsys, *argv, "a</s>", "--quiet")[2] == ""
    run(capsys, *argv, "<s>a</s>", "--parse-special")
    with LLM(tiny_model) as llm:
        assert seen[0] == llm.tokenize("a</s>", None)
        assert seen[1] == llm.tokenize("a</s>", None, parse_special=True)
        assert (2 in seen[0], 2 in seen[1]) == (False, True)
        assert (seen[4][0], seen[4].count(1)) == (1, 1)


def test_banner_names_the_types_that_are_held(
    capsys: pytest.CaptureFixture[str], tiny_model: Path
) -> None:
    argv = ["--model-path", tiny_model, "--max-new-tokens", "0"]
    assert re.search(r", F32 [\d.]+ MB", run(capsys, *argv)[2])
    assert re.search(r", F16 [\d.]+ MB", run(capsys, *argv, "--f16")[2])


def test_home_folder_in_a_path_is_found(
    capsys: pytest.CaptureFixture[str], tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tiny_model.parent))
    argv = ["--model-path", f"~/{tiny_model.name}", "--max-new-tokens", "0", "-q"]
    assert run(capsys, *argv) == (0, "\n", "")


def test_output_is_prompt_then_continuation(
    capsys: pytest.CaptureFixture[str], tiny_model: Path
) -> None:
    options = ["--temperature", "0", "--max-new-tokens", "9", "--ignore-eos", "--prompt", "the sea"]
    with LLM(tiny_model) as llm:
        params = SamplingParams(temperature=0, max_new_tokens=9, ignore_eos=True)
        text = llm.generate("the sea", params).text
    exit_code, out, err = run(capsys, "--model-path", tiny_model, *options)
    assert (exit_code, out) == (0, f"the sea{text}\n")
    banner, stats = err.splitlines()
    assert re.fullmatch(r"rllama: .*F32 .* MB, context 4096, \d+ threads?, \w+", banner)
    assert re.fullmatch(
        r"rllama: prompt \d+ tok at [\d.]+ tok/s, output 9 tok at [\d.]+ tok/s"
        r"( = \d+% of memory bandwidth)?, first token \d+ ms, peak memory \d+ MB",
        stats,
    )
    assert run(capsys, "run", tiny_model, *options, "--quiet") == (0, f"the sea{text}\n", "")
    assert run(capsys, "run", tiny_model, *options, "--quiet", "--no-echo")[1] == f"{text}\n"


def test_stats_tell_the_share_of_a_measured_bandwidth(
    capsys: pytest.CaptureFixture[str],
    tiny_model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    argv = ["--model-path", tiny_model, "--max-new-tokens", "9", "--ignore-eos", "--max-threads"]
    assert "bandwidth" not in run(capsys, *argv, "1")[2]
    save_bandwidth(1e9, 1)
    assert re.search(r"tok/s = \d+% of memory bandwidth", run(capsys, *argv, "1")[2])
    assert "bandwidth" not in run(capsys, *argv, "2")[2]


def test_every_sampling_flag_reaches_the_engine(
    capsys: pytest.CaptureFixture[str], tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[SamplingParams] = []
    original = LLM.stream

    def spy(self: LLM, prompt: str, params: SamplingParams, **more: object) -> object:
        seen.append(params)
        return original(self, prompt, params, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(LLM, "stream", spy)
    flags = (
        "--temperature 0.5 --top-k 3 --top-p 0.9 --min-p 0.1 --repetition-penalty 1.1 --seed 4 "
        "--max-new-tokens 2 --stop x --stop y --ignore-eos"
    )
    assert run(capsys, "--model-path", tiny_model, *flags.split())[0] == 0
    assert run(capsys, "--model-path", tiny_model, "--max-new-tokens", "1")[0] == 0
    assert seen == [
        SamplingParams(
            temperature=0.5, top_k=3, top_p=0.9, min_p=0.1, repetition_penalty=1.1, seed=4,
            max_new_tokens=2, stop=("x", "y"), ignore_eos=True,
        ),
        SamplingParams(max_new_tokens=1),
    ]  # fmt: skip


def test_llama2c_letters_tell_the_trained_model_s_stories(
    capsys: pytest.CaptureFixture[str], stories: Path
) -> None:
    model, tokenizer = stories / "stories260K.bin", stories / "tok512.bin"
    for prompt, want in json.loads((stories / "greedy_texts.json").read_text()).items():
        letters = ["-t", "0", "-n", "200", "-i", prompt, "-z", tokenizer, "--quiet"]
        assert run(capsys, "run", model, *letters) == (0, want, "")


# ---- inspect ----


def test_inspect_lists_what_is_in_a_file(
    capsys: pytest.CaptureFixture[str], tiny_model: Path
) -> None:
    exit_code, out, err = run(capsys, "inspect", tiny_model, "--json")
    assert (exit_code, err) == (0, "")
    report = json.loads(out)
    assert report["format"] == "GGUF"
    assert report["problem"] is None
    assert report["config"]["n_kv_heads"] == 2
    assert report["tokenizer"]["pieces"] == 288
    assert report["types"]["F32"]["tensors"] == len(report["tensors"]) == 21
    wq = next(t for t in report["tensors"] if t["name"] == "layers.1.wq")
    assert (wq["type"], wq["shape"], wq["bytes"]) == ("F32", [32, 32], 4096)
    assert report["total"]["bytes"] == sum(t["bytes"] for t in report["tensors"])
    text = run(capsys, "inspect", "--model-path", tiny_model)[1]
    for word in ("n_kv_heads", "layers.1.wq", "32 x 32", "4,096", "tokenizer", "288"):
        assert word in text


def test_inspect_shows_the_experts_of_a_layer_in_one_line(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    family = FAMILIES["mixtral"]
    numbers = hf_numbers(family.config, **family.hf)
    folder = write_family_hf(tmp_path / "hf", numbers, random_family(family, 1))
    text = run(capsys, "inspect", folder)[1]
    assert re.findall(r"layers\.0\.experts\S+ \S+", text) == [
        f"layers.0.experts.*.{name} x5" for name in ("w_gate", "w_up", "w_down")
    ]
    report = json.loads(run(capsys, "inspect", folder, "--json")[1])
    assert sum("layers.0.experts." in tensor["name"] for tensor in report["tensors"]) == 15


def test_inspect_lists_a_vocabulary_alone(
    capsys: pytest.CaptureFixture[str], data_dir: Path
) -> None:
    path = data_dir / "vocab" / "ggml-vocab-llama-spm.gguf"
    exit_code, out, _ = run(capsys, "inspect", path, "--json")
    report = json.loads(out)
    assert exit_code == 0
    assert report["config"] is None
    assert report["tokenizer"]["pieces"] == 32000


def test_inspect_lists_a_model_that_cannot_run_and_says_why(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    cfg = tiny_config()
    tensors = random_model(cfg, seed=1)
    del tensors["layers.1.wk"]
    path = write_gguf(tmp_path / "m.gguf", cfg, tensors)
    exit_code, out, err = run(capsys, "inspect", path, "--json")
    assert (exit_code, err) == (0, "")
    report = json.loads(out)
    assert report["total"]["tensors"] == 20
    assert "'blk.1.attn_k.weight' (layers.1.wk) is missing" in report["problem"]
    assert report["problem"] in run(capsys, "inspect", path)[1]
    exit_code, _, err = run(capsys, "run", path)
    assert exit_code == 1
    assert err == f"rllama: error: {report['problem']}\n"


def test_inspect_cpu_says_what_is_chosen_and_why(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    report = json.loads(run(capsys, "inspect", "--cpu", "--json")[1])
    levels = {level["name"]: level for level in report["levels"]}
    assert levels[report["chosen"]] == {
        "name": report["chosen"], "compiled": True, "usable": True,
    }  # fmt: skip
    assert report["threads"]["count"] >= 1
    monkeypatch.setenv("RLLAMA_ISA", "scalar")
    text = run(capsys, "inspect", "--cpu")[1]
    assert "chosen    scalar (RLLAMA_ISA says so)" in text
    assert "threads   " in text
