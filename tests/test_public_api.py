"""What `import rllama` gives, and that it stays what it is."""

from __future__ import annotations

import dataclasses
import inspect
import logging
import subprocess
import sys
import tomllib
from pathlib import Path
from types import ModuleType

import pytest

import rllama
from rllama import LLM, SamplingParams, load_tokenizer
from rllama._identity import check_package, require_ours

ROOT = Path(__file__).resolve().parents[1]

LLM_METHODS = {
    "generate": ["prompts", "params"],
    "agenerate": ["prompts", "params"],
    "stream": ["prompt", "params", "with_probability", "on_prefill"],
    "astream": ["prompt", "params", "with_probability"],
    "logits": ["token_ids"],
    "tokenize": ["text", "add_bos", "parse_special"],
    "detokenize": ["token_ids"],
    "close": [],
}


def test_public_names_are_these() -> None:
    assert rllama.__all__ == [
        "LLM", "Completion", "CompletionStats", "Piece", "RllamaError", "SamplingParams",
        "__version__", "load_tokenizer",
    ]  # fmt: skip
    for name in rllama.__all__:
        assert getattr(rllama, name) is getattr(rllama, name)
        assert name in dir(rllama)


def test_public_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="'rllama' has no attribute 'LLMs'"):
        _ = rllama.LLMs  # type: ignore[attr-defined]


def test_public_version_is_the_project_s() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert rllama.__version__ == project["version"]


def test_public_package_says_that_it_is_typed() -> None:
    assert (Path(rllama.__file__).parent / "py.typed").is_file()


def test_public_llm_options_after_the_path_are_by_name() -> None:
    parameters = inspect.signature(LLM).parameters
    assert next(iter(parameters)) == "path"
    assert parameters["path"].default is None
    assert {p.kind for name, p in parameters.items() if name != "path"} == {
        inspect.Parameter.KEYWORD_ONLY
    }
    promised = {"tokenizer_path": None, "param_path": None, "f16": False, "isa": None,
                "quantize": None,
                "n_threads": None, "max_seq_len": None}  # fmt: skip
    assert promised.items() <= {name: p.default for name, p in parameters.items()}.items()


@pytest.mark.parametrize("name", list(LLM_METHODS))
def test_public_llm_methods_have_these_parameters(name: str) -> None:
    parameters = list(inspect.signature(getattr(LLM, name)).parameters)
    assert parameters == ["self", *LLM_METHODS[name]]


def test_public_sampling_fields_are_unset_by_default() -> None:
    names = [f.name for f in dataclasses.fields(SamplingParams)]
    promised = ["temperature", "top_k", "top_p", "min_p", "repetition_penalty", "seed", "stop",
                "stop_token_ids", "ignore_eos", "max_new_tokens", "logprobs"]  # fmt: skip
    assert names[: len(promised)] == promised
    assert all(getattr(SamplingParams(), name) is None for name in names)


def test_public_load_tokenizer_from_a_model_file(tiny_model: Path) -> None:
    tokenizer = load_tokenizer(tiny_model)
    ids = tokenizer.encode("the sea", add_bos=True)
    assert ids[0] == tokenizer.bos_token_id == 1
    assert tokenizer.decode(ids) == "the sea"


@pytest.mark.parametrize(
    "name", ["vocab/ggml-vocab-llama-spm.gguf", "llama2/tokenizer.model", "llama2/tokenizer.bin"]
)
def test_public_load_tokenizer_of_every_kind(data_dir: Path, name: str) -> None:
    tokenizer = load_tokenizer(data_dir / name)
    want = [306, 4658, 278, 6593, 310, 2834, 338]
    assert tokenizer.encode("I believe the meaning of life is") == want
    assert tokenizer.encode("I believe the meaning of life is", add_bos=True) == [1, *want]


def test_public_library_is_silent(tiny_model: Path) -> None:
    script = (
        "import sys; from rllama import LLM, SamplingParams\n"
        "with LLM(sys.argv[1]) as llm: llm.generate('a', SamplingParams(max_new_tokens=2))\n"
    )
    command = [sys.executable, "-X", "dev", "-c", script, str(tiny_model)]
    done = subprocess.run(command, capture_output=True, timeout=60, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")
    handlers = logging.getLogger("rllama").handlers
    assert any(isinstance(handler, logging.NullHandler) for handler in handlers)


# ---- the other package of the same name ----


def site_with(tmp_path: Path, *names: str) -> str:
    for name in ("rllama", *names):
        (tmp_path / name).mkdir()
    return str(tmp_path / "rllama" / "__init__.py")


def test_identity_one_package_is_fine(tmp_path: Path) -> None:
    check_package(site_with(tmp_path, "rllama-1.2.dist-info", "numpy-2.0.dist-info"), "1.2")


@pytest.mark.parametrize(
    "other", ["rllama-0.3.0.dist-info", "rllama.cpython-311-x86_64-linux-gnu.so"]
)
def test_identity_two_packages_in_one_folder_are_said(tmp_path: Path, other: str) -> None:
    init_file = site_with(tmp_path, "rllama-1.2.dist-info", other)
    with pytest.raises(ImportError, match=f"two different packages named rllama.*{other}"):
        check_package(init_file, "1.2")


def test_identity_foreign_init_over_our_modules_is_said() -> None:
    require_ours(rllama)
    with pytest.raises(ImportError, match="an __init__\\.py that is not ours"):
        require_ours(ModuleType("rllama"))
