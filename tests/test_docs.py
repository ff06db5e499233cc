"""What the documents say exists, runs, and has these names and numbers."""

from __future__ import annotations

import inspect
import re
import shlex
from dataclasses import fields
from pathlib import Path

import pytest

import rllama
from rllama import LLM
from rllama.cli.main import COMMANDS, main
from rllama.config import ModelConfig

ROOT = Path(__file__).resolve().parents[1]
README = ROOT / "README.md"
DOCS = sorted(
    path
    for path in (*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("training/*.md"),
                 *ROOT.glob("src/**/*.md"))
)  # fmt: skip
OURS = (README, ROOT / "CHANGELOG.md", *(ROOT / "docs" / f"{name}.md" for name in
        ("adding", "architecture", "cli", "models", "performance", "reliability")))  # fmt: skip
# Where a path in a document may be meant from.
BASES = (ROOT, ROOT / "src/rllama", ROOT / "src/rllama/_kernels", ROOT / "src/rllama/_kernels/isa")

MADE_WHEN_RUN = {"benchmarks/results/"}
# Beginnings and endings of names, a name that the preprocessor pastes, and names yet to be made.
NOT_IN_SOURCES = {"n_", "_bytes", "_s", "_ms", "_per_s", "rl_fused_q4_0_avx2", "RL_MINS"}

_LINK = re.compile(r"\]\(([^)\s]+)\)")
_BLOCK = re.compile(r"^```(\w*)\n(.*?)^```", re.DOTALL | re.MULTILINE)
_CODE = re.compile(r"`([^`\n]+)`")
_FILE = re.compile(r"[\w./*-]*\w\.(?:py|pyi|pyx|c|h|inc|cpp|md|txt|yml|toml|jsonl|gguf)|[\w./-]+/")
_FLAG = re.compile(r"--[a-z0-9][a-z0-9-]*")

by_name = pytest.mark.parametrize("path", DOCS, ids=lambda p: str(p.relative_to(ROOT)))
ours_by_name = pytest.mark.parametrize("path", OURS, ids=lambda p: str(p.relative_to(ROOT)))


def text_of(path: Path) -> str:
    return path.read_text(encoding="utf-8")


def blocks(path: Path, *languages: str) -> list[str]:
    """The fenced blocks of some languages."""
    return [body for language, body in _BLOCK.findall(text_of(path)) if language in languages]


def spans(path: Path) -> list[str]:
    """What stands in backticks, outside fenced blocks."""
    found: list[str] = _CODE.findall(_BLOCK.sub("", text_of(path)))
    return found


def anchors(path: Path) -> set[str]:
    """The anchors of the headings."""
    headings = re.findall(r"^#+ (.+)$", _BLOCK.sub("", text_of(path)), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", h.lower()).replace(" ", "-") for h in headings}


def help_of(capsys: pytest.CaptureFixture[str], *command: str) -> str:
    assert main([*command, "--help"]) == 0
    return capsys.readouterr().out


# ---- what is named exists ----


@by_name
def test_docs_relative_links_resolve(path: Path) -> None:
    for target in _LINK.findall(_BLOCK.sub("", text_of(path))):
        if re.match(r"[a-z]+:", target):
            continue
        name, _, anchor = target.partition("#")
        found = (path.parent / name).resolve() if name else path
        assert found.exists(), f"{path.name}: {target}"
        assert not anchor or anchor in anchors(found), f"{path.name}: {target}"


@ours_by_name
def test_docs_files_named_exist(path: Path) -> None:
    for span in spans(path):
        if _FILE.fullmatch(span) and "/" in span and span not in MADE_WHEN_RUN:
            assert any(next(base.glob(span), None) for base in BASES), f"{path.name}: {span}"


@pytest.mark.parametrize("name", ["adding.md", "architecture.md", "performance.md"])
def test_docs_identifiers_named_exist(name: str) -> None:
    """Names with an underscore or in capitals, as they stand in backticks, occur in the sources."""
    suffixes = {".py", ".pyx", ".pyi", ".c", ".h", ".inc", ".cpp"}
    sources = "\n".join(
        text_of(file)
        for folder in ("src", "tests", "benchmarks")
        for file in sorted((ROOT / folder).rglob("*"))
        if file.suffix in suffixes and file.name not in ("core.c", Path(__file__).name)
    ) + text_of(ROOT / "setup.py")
    known = set(re.findall(r"\w+", sources)) | NOT_IN_SOURCES
    words = [span for span in spans(ROOT / "docs" / name) if re.fullmatch(r"[A-Za-z_]\w*", span)]
    named = {word for word in words if "_" in word or word.isupper()}
    assert named - known == set()


@ours_by_name
def test_docs_constants_have_the_values_they_have_in_the_sources(path: Path) -> None:
    """`NAME` (number) or `NAME`, number units."""
    kernels = "\n".join(map(text_of, (ROOT / "src/rllama/_kernels").rglob("*.[ch]")))
    for constant, number in re.findall(r"`(RL_\w+)`[ ,(]+(\d+)", text_of(path)):
        value = re.search(rf"#define {constant} (\d+)", kernels)
        assert value is not None, constant
        assert value[1] == number, constant


def test_docs_glossary_words_are_fields_of_the_config() -> None:
    table = text_of(ROOT / "docs/architecture.md").partition("| ours |")[2]
    words = re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE)
    assert len(words) >= 10
    assert set(words) <= {field.name for field in fields(ModelConfig)}


def test_docs_make_targets_exist() -> None:
    targets = set(re.findall(r"^([a-z-]+):", text_of(ROOT / "Makefile"), re.MULTILINE))
    for path in DOCS:
        named = re.findall(r"(?:^    |`)make ([a-z-]+)", text_of(path), re.MULTILINE)
        assert set(named) <= targets, path.name


def test_docs_scripts_and_their_flags_exist() -> None:
    for path in DOCS:
        for script, rest in re.findall(r"python ((?:benchmarks|training)/\w+\.py)([^`\n#]*)",
                                       text_of(path)):  # fmt: skip
            source = text_of(ROOT / script)
            for flag in _FLAG.findall(rest):
                assert f'"{flag}"' in source, f"{path.name}: {script} {flag}"


# ---- what is shown works ----


@by_name
def test_docs_python_blocks_compile(path: Path) -> None:
    for code in blocks(path, "python", "py"):
        compile(code, path.name, "exec")


@pytest.mark.parametrize("index", range(len(blocks(README, "python"))))
def test_readme_python_example_runs(
    index: int, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # on a busy machine two would wait for each other
    code = compile(blocks(README, "python")[index], "README.md", "exec")
    exec(code, {"__name__": "__main__"})
    out, err = capsys.readouterr()
    assert len(out) > 100
    assert err == ""


def test_readme_has_its_examples() -> None:
    assert len(blocks(README, "python")) == 2
    assert len(blocks(README, "sh")) == 2


def readme_commands() -> list[list[str]]:
    lines = "\n".join(blocks(README, "sh")).splitlines()
    return [shlex.split(line, comments=True) for line in lines if line.startswith("rllama ")]


@pytest.mark.parametrize("words", readme_commands(), ids=" ".join)
def test_readme_command_has_only_known_flags(
    words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    command = [] if words[1].startswith("-") else [words[1]]
    assert set(command) <= set(COMMANDS)
    flags = {word for word in words if word.startswith("-")}
    assert flags <= set(_FLAG.findall(help_of(capsys, *command)))


def test_readme_options_exist(capsys: pytest.CaptureFixture[str]) -> None:
    table = text_of(README).partition("## Options in short")[2].partition("\n## ")[0]
    flags = set(_FLAG.findall(table))
    assert len(flags) > 15
    assert flags <= set(_FLAG.findall(help_of(capsys)))


@pytest.mark.parametrize("command", list(COMMANDS))
def test_cli_document_lists_exactly_the_options(
    command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    section = text_of(ROOT / "docs/cli.md").partition(f"\n## {command}\n")[2].partition("\n## ")[0]
    rows = "\n".join(line.split("|")[1] for line in section.splitlines() if line.startswith("| "))
    real = set(_FLAG.findall(help_of(capsys, command))) - {"--help"}
    assert set(_FLAG.findall(rows)) - {"--help", "--version"} == real


def test_library_document_lists_exactly_the_arguments_of_llm() -> None:
    section = text_of(ROOT / "docs/library.md").partition("\n## LLM\n")[2].partition("| method")[0]
    named = {word for line in section.splitlines() if line.startswith("| `")
             for word in _CODE.findall(line.split("|")[1])}  # fmt: skip
    assert named == set(inspect.signature(LLM).parameters)


def test_cli_document_lists_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    headings = re.findall(r"^## (\w+)$", text_of(ROOT / "docs/cli.md"), re.MULTILINE)
    assert set(COMMANDS) <= set(headings)


# ---- what is claimed is so ----


def test_readme_embedded_model_is_as_described() -> None:
    claim = re.search(
        r"Llama of ([\d.]+) million parameters \((\w+), ([\d.]+) MB, context of (\d+)\)",
        text_of(README),
    )
    assert claim is not None
    with LLM() as llm:
        views = llm.loaded.checkpoint.tensors.values()
        n_values = sum(view.n_bytes * view.dtype.block_len // view.dtype.block_bytes
                       for view in views)  # fmt: skip
        types = {view.dtype.name for view in views if len(view.shape) == 2}
        size = Path(llm.loaded.checkpoint.path).stat().st_size
        assert float(claim[1]) == round(n_values / 1e6, len(claim[1].partition(".")[2]))
        assert types == {claim[2]}
        assert float(claim[3]) == round(size / 1e6, 1)
        assert int(claim[4]) == llm.config.max_seq_len


def test_changelog_begins_with_this_version() -> None:
    first = re.search(r"^## (\S+)", text_of(ROOT / "CHANGELOG.md"), re.MULTILINE)
    assert first is not None
    assert first[1] == rllama.__version__


@pytest.mark.parametrize(
    "path", [*DOCS, *sorted((ROOT / "src").rglob("*.py"))], ids=lambda p: str(p.relative_to(ROOT))
)
def test_docs_and_messages_never_install_the_name_from_a_registry(path: Path) -> None:
    text = text_of(path)
    assert not re.search(r"pip install[^\n`]*[\s'\"]rllama(?![\w./-])", text)
    assert not re.search(r"\brllama\[[a-z]", text)


@pytest.mark.parametrize("path", [README, ROOT / "docs/performance.md"], ids=lambda p: p.name)
def test_docs_figures_have_their_place(path: Path) -> None:
    text = text_of(path)
    assert text.count("<!-- figures -->") == text.count("<!-- /figures -->") == 1
    assert text.index("<!-- figures -->") < text.index("<!-- /figures -->")
