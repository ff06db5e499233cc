"""Who may import whom: the floors of docs/architecture.md, checked on every import there is."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

SRC = Path(__file__).resolve().parents[1] / "src" / "rllama"

FLOORS = {
    "_kernels": 0, "_identity": 0,
    "errors": 1, "config": 1, "dtypes": 1, "tensor": 1, "batch": 1, "quant": 1, "cgroups": 1,
    "kv_groups": 1, "packed": 1, "recipe": 1,
    "backend": 2, "cpu": 2, "opencl": 2, "dist": 2, "memory": 2, "yardstick": 2, "threads": 2,
    "making": 2,
    "formats": 3, "tokenizers": 3,
    "models": 4,
    "loader": 5, "recast": 5,
    "engine": 6,
    "chat": 7, "prompts": 7, "llm": 7,
    "server": 8, "cli": 8, "tools": 8,
    "__main__": 9, "__init__": 9,
}  # fmt: skip

# Floor 1 is words only: they may build on each other, in one direction (no cycle, see below).
SAME_FLOOR = {
    ("config", "errors"), ("kv_groups", "config"),
    ("dtypes", "errors"), ("tensor", "errors"), ("tensor", "dtypes"),
    ("tensor", "packed"), ("tensor", "recipe"), ("recipe", "dtypes"),
    ("packed", "errors"), ("packed", "dtypes"),
    ("quant", "errors"), ("quant", "dtypes"),
    ("cpu", "backend"), ("cpu", "making"), ("making", "backend"),
    ("cpu", "threads"), ("loader", "recast"), ("backend", "cpu"),
    ("opencl", "backend"), ("backend", "opencl"),
    ("llm", "chat"), ("llm", "prompts"),
    ("cli", "server"), ("cli", "tools"),
    ("cli", "__init__"),  # `rllama --version`, and whose package this is
}  # fmt: skip
SERVER_SEES = {"llm", "engine", "config", "errors"}
# Hardware is known to those that wrap it; everybody else holds the protocol of `backend`.
SEEN_BY = {
    "_kernels": {"cpu", "tools"},
    "cpu": {"backend", "tools"},
    "opencl": {"backend", "tools"},
}

FILES = sorted(path for path in SRC.rglob("*.py*") if path.suffix in (".py", ".pyi"))


def package_of(path: Path) -> str:
    return path.relative_to(SRC).parts[0].partition(".")[0]


def imports_of(path: Path) -> Iterator[tuple[int, str]]:
    """Line and dotted name of everything of rllama that a file imports."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.split(".")[0] == "rllama":
                    yield node.lineno, alias.name
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: imports are written in full"
            module = node.module or ""
            if module.split(".")[0] != "rllama":
                continue
            for alias in node.names:
                yield node.lineno, f"{module}.{alias.name}"


def complaint(source: str, target: str) -> str | None:
    """What is wrong with package `source` importing package `target`, if anything."""
    if source == target or source == "__init__":
        return None
    if source not in SEEN_BY.get(target, FLOORS):
        return f"only {sorted(SEEN_BY[target])} know {target}"
    if source == "server" and target not in SERVER_SEES:
        return f"server sees only {sorted(SERVER_SEES)}"
    if FLOORS[target] < FLOORS[source] or (source, target) in SAME_FLOOR:
        return None
    return f"floor {FLOORS[source]} may not reach floor {FLOORS[target]}"


def edges(path: Path) -> Iterator[tuple[int, str, str]]:
    for line, name in imports_of(path):
        parts = name.split(".")
        # `from rllama import x` is an import of the package itself unless x is a module of it.
        target = parts[1] if len(parts) > 1 else "__init__"
        yield line, name, target if target in FLOORS else "__init__"


def test_layering_every_module_has_a_floor() -> None:
    assert FILES
    assert {package_of(path) for path in FILES} <= set(FLOORS)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(SRC)))
def test_layering_imports_go_down(path: Path) -> None:
    source = package_of(path)
    wrong = [
        f"{path.relative_to(SRC)}:{line}: {name}: {why}"
        for line, name, target in edges(path)
        if (why := complaint(source, target))
    ]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize(
    ("source", "target", "allowed"),
    [
        ("models", "backend", True),
        ("models", "cpu", False),
        ("models", "formats", True),
        ("formats", "tokenizers", False),
        ("engine", "llm", False),
        ("server", "formats", False),
        ("cli", "tools", True),
        ("tools", "cli", False),
        ("llm", "_kernels", False),
        ("cpu", "_kernels", True),
    ],
)
def test_layering_rule_on_known_edges(source: str, target: str, allowed: bool) -> None:
    assert (complaint(source, target) is None) is allowed


def callers(name: str) -> set[str]:
    """Files that call something of this name, as `name(...)` or `x.name(...)`."""
    found = set()
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call):
                called = getattr(node.func, "attr", getattr(node.func, "id", None))
                if called == name:
                    found.add(str(path.relative_to(SRC)))
    return found


def test_layering_one_home_for_python_threads() -> None:
    below = {f for f in callers("Thread") if FLOORS[package_of(SRC / f)] < 8}
    assert below == {"engine/worker.py"}
    assert not callers("ThreadPoolExecutor")


def test_layering_one_home_for_raw_file_bytes() -> None:
    assert callers("mmap") == {"formats/mapped_file.py"}


def test_layering_print_only_in_cli() -> None:
    assert all(package_of(SRC / f) == "cli" for f in callers("print"))
