"""Architectures of other packages: the example of docs/plugins.md, installed and run."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from formats.family_writers import hf_numbers, write_family_hf
from formats.writers import F32, GGUF_TYPE_IDS, STRING, RawTensor, Tensors, raw_gguf, tiny_config
from models.runner import in_chunks, open_runner, relative_error, tokens
from reference import ref_model

from rllama.errors import ConfigError, RllamaError, UnsupportedError
from rllama.loader import open_model
from rllama.models import find

PAGE = Path(__file__).parents[2] / "docs" / "plugins.md"
CFG = replace(tiny_config(), arch="damped", rope_style="half")
DAMPING = 0.5
Install = Callable[..., None]

pytestmark = pytest.mark.skipif(not PAGE.exists(), reason="needs docs/plugins.md")


def block(language: str) -> str:
    """The first block of a language on the page."""
    found = re.search(rf"^```{language}\n(.*?)^```", PAGE.read_text("utf-8"), re.M | re.S)
    assert found is not None
    return found.group(1)


def put(folder: Path, code: str, points: dict[str, str], package: str = "rllama-damped") -> None:
    """What an installer leaves in a folder of packages."""
    (folder / "damped.py").write_text(code, encoding="utf-8")
    info = folder / f"{package.replace('-', '_')}-0.1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 0.1\n")
    lines = ["[rllama.architectures]", *(f"{name} = {value}" for name, value in points.items())]
    (info / "entry_points.txt").write_text("\n".join(lines) + "\n")


def registered() -> dict[str, str]:
    project = tomllib.loads(block("toml"))["project"]
    points: dict[str, str] = project["entry-points"]["rllama.architectures"]
    return points


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder of packages that this process sees."""
    folder = tmp_path / "site"
    folder.mkdir()
    monkeypatch.syspath_prepend(folder)
    yield folder
    sys.modules.pop("damped", None)


@pytest.fixture
def example(site: Path) -> Path:
    put(site, block("python"), registered())
    return site


def random_damped(seed: int = 1) -> Tensors:
    from formats.writers import random_model

    rng = np.random.default_rng(seed)
    norms = {
        f"layers.{i}.mid_norm": (1 + 0.2 * rng.standard_normal(CFG.ffn_dim)).astype(np.float32)
        for i in range(CFG.n_layers)
    }
    return random_model(CFG, seed) | norms


def write_hf(folder: Path, **numbers: object) -> Path:
    model = random_damped()
    extras = {f"model.layers.{i}.mlp.mid_norm.weight": model.pop(f"layers.{i}.mid_norm")
              for i in range(CFG.n_layers)}  # fmt: skip
    given = hf_numbers(CFG, ffn_damping=DAMPING, architectures=["DampedForCausalLM"])
    given["n_embd"] = given.pop("hidden_size")
    return write_family_hf(folder, given | numbers, model, extras=extras)


def write_gguf(path: Path) -> Path:
    model = random_damped()
    norms = {name: model.pop(name) for name in list(model) if name.endswith("mid_norm")}
    raw = raw_gguf(replace(CFG, arch="llama"), model)
    raw.kvs = {key.replace("llama.", "damped.", 1): value for key, value in raw.kvs.items()}
    raw.kvs["general.architecture"] = (STRING, "damped")
    raw.kvs["damped.ffn_damping"] = (F32, DAMPING)
    for i in range(CFG.n_layers):
        x = norms[f"layers.{i}.mid_norm"]
        name = f"blk.{i}.ffn_mid_norm.weight"
        raw.tensors.append(RawTensor(name, x.shape, GGUF_TYPE_IDS["F32"], x.tobytes()))
    path.write_bytes(raw.to_bytes())
    return path


def reference(ids: list[int], style: str, monkeypatch: pytest.MonkeyPatch) -> np.ndarray:
    """The float64 model with the example's own feed-forward."""

    def ffn(cfg: object, w: dict[str, np.ndarray], x: np.ndarray) -> np.ndarray:
        h = ref_model.normed(CFG, w, "ffn_norm", x)
        unit = ref_model.silu(h @ w["w_gate"].T) * (h @ w["w_up"].T)
        unit = ref_model.rms_norm(unit, w["mid_norm"], CFG.norm_eps)
        return DAMPING * unit @ w["w_down"].T

    monkeypatch.setattr(ref_model, "ffn_branch", ffn)
    wide = {name: x.astype(np.float64) for name, x in random_damped().items()}
    return ref_model.forward(replace(CFG, rope_style=style), wide, ids)  # type: ignore[arg-type]


def test_example_of_the_page_runs_from_hf_files(
    example: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = tokens(CFG, 40)
    folder = write_hf(tmp_path / "hf")
    want = reference(ids, "half", monkeypatch)
    whole = in_chunks(open_runner(folder), ids, 40)
    assert relative_error(whole, want) < 2e-5
    np.testing.assert_array_equal(in_chunks(open_runner(folder), ids, 7), whole)


def test_example_of_the_page_runs_from_a_gguf(
    example: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = tokens(CFG, 40)
    want = reference(ids, "interleaved", monkeypatch)
    got = in_chunks(open_runner(write_gguf(tmp_path / "m.gguf")), ids, 40)
    assert relative_error(got, want) < 2e-5


def test_example_of_the_page_is_seen_by_the_command_line(example: Path, tmp_path: Path) -> None:
    """In a process of its own, with the packages' folder on its path."""
    path = os.pathsep.join([str(example), *(p for p in sys.path if p)])
    command = [sys.executable, "-m", "rllama", "inspect", str(write_gguf(tmp_path / "m.gguf"))]
    done = subprocess.run(
        command, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": path}, timeout=60
    )
    assert done.returncode == 0, done.stderr
    assert "damped" in done.stdout
    assert "mid_norm" in done.stdout


def test_built_in_architectures_do_not_look_for_plugins(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "rllama.models.plugins", None)  # an import would fail
    assert find("llama").__name__ == "Llama"


def test_built_in_architecture_is_not_replaced(site: Path) -> None:
    put(site, block("python"), {"llama": "damped:Damped"})
    assert find("llama").__name__ == "Llama"


def test_unknown_architecture_names_the_page() -> None:
    with pytest.raises(UnsupportedError, match=r"'xyzzy'.*docs/plugins\.md"):
        find("xyzzy")


@pytest.mark.parametrize(
    ("code", "point", "words"),
    [
        ("import nothing_of_this_name", "damped:Damped",
         r"rllama-damped 0\.1 \(damped:Damped\).*ModuleNotFoundError.*nothing_of_this_name"),
        ("x = 1", "damped:Damped", "AttributeError"),
        ("1 / 0", "damped:Damped", "ZeroDivisionError"),
        ("Damped = 3", "damped:Damped", "no subclass"),
        ("class Damped: pass", "damped:Damped", "no subclass"),
        ("from rllama.models.base import Decoder as Damped", "damped:Damped", "no tensors"),
    ],
    ids=["import", "attribute", "raises", "number", "other class", "no tensors"],
)  # fmt: skip
def test_plugin_that_is_of_no_use_is_named(
    code: str, point: str, words: str, site: Path, tmp_path: Path
) -> None:
    put(site, code, {"damped": point})
    with pytest.raises(UnsupportedError, match=words):
        find("damped")
    with pytest.raises(UnsupportedError, match=words):
        open_model(write_hf(tmp_path / "hf"))


def test_two_plugins_for_one_name_are_both_named(site: Path) -> None:
    put(site, block("python"), registered())
    put(site, block("python"), {"damped": "damped:DampedConfig"}, "other")
    with pytest.raises(UnsupportedError, match=r"other 0\.1.*rllama-damped 0\.1"):
        find("damped")


_HOOK = """
from rllama.models.llama import Llama
from rllama.models.table import T
class Damped(Llama):
    {}
"""


@pytest.mark.parametrize(
    ("body", "error", "words"),
    [
        ("@classmethod\n    def adapt(cls, fields): return fields['no_such_key']", ConfigError,
         r"config\.json: adapt\(\) of the architecture 'damped' failed: KeyError: 'no_such_key'"),
        ("@classmethod\n    def adapt(cls, fields): return 3", ConfigError, "gave no mapping"),
        ("@classmethod\n    def config(cls, fields, cfg): return None", ConfigError,
         r"config\(\) of the architecture 'damped' gave no ModelConfig"),
        ("@classmethod\n    def config(cls, fields, cfg): raise TypeError('so')", ConfigError,
         "failed: TypeError: so"),
        ("TENSORS = (*Llama.TENSORS, T('layers.{i}.mid_norm', 'Z'))", ConfigError,
         "no such letter: 'Z'"),
        ("pass", ConfigError, "hidden_size is missing"),
    ],
    ids=["key", "no mapping", "no config", "raises", "letter", "nothing adapted"],
)  # fmt: skip
def test_hook_that_fails_is_named_with_the_file(
    body: str, error: type[RllamaError], words: str, site: Path, tmp_path: Path
) -> None:
    put(site, _HOOK.format(body), {"damped": "damped:Damped"})
    numbers: dict[str, object] = {} if body == "pass" else {"hidden_size": CFG.dim}
    with pytest.raises(error, match=words):
        open_model(write_hf(tmp_path / "hf", **numbers))


def test_errors_of_a_hook_in_our_words_pass(example: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="ffn_damping must be a number below 10, not 50"):
        open_model(write_hf(tmp_path / "hf", ffn_damping=50.0))
