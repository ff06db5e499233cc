"""Names of GGUF tensors and keys against the package that defines them."""

from __future__ import annotations

from pathlib import Path

import pytest

from rllama.formats import names
from rllama.formats.gguf_families import FAMILIES
from rllama.models import find

gguf = pytest.importorskip("gguf")

SRC = Path(names.__file__).parent
DENSE = [arch for arch in FAMILIES if not any("router" in r.name for r in find(arch).TENSORS)]
# The gate lies in `ffn_up` there, and these heads are always the embedding.
ABSENT = {
    "phi3": {"blk.{i}.ffn_gate"}, "glm4": {"blk.{i}.ffn_gate"}, "gemma": {"output"},
    "gemma2": {"output"},
}  # fmt: skip


def their_names(arch: str) -> set[str]:
    by_name = {name: number for number, name in gguf.MODEL_ARCH_NAMES.items()}
    kinds = gguf.MODEL_TENSORS[by_name[arch]]
    return {gguf.TENSOR_NAMES[kind].replace("{bid}", "{i}") for kind in kinds}


@pytest.mark.parametrize("arch", DENSE)
def test_gguf_names_of_a_family_are_those_of_the_package(arch: str) -> None:
    table = {ours: theirs for theirs, ours in names.gguf_table(arch).items()}
    needed = [row.name for row in find(arch).TENSORS if not row.optional and not row.parts]
    ours = {table[name].removesuffix(".weight").removesuffix(".bias") for name in needed}
    assert ours - their_names(arch) == ABSENT.get(arch, set())


def test_gguf_keys_that_are_read_are_those_of_the_package() -> None:
    keys = gguf.constants.Keys
    theirs = {
        value.replace("{arch}.", "")
        for group in (keys.LLM, keys.Attention, keys.Rope)
        for value in vars(group).values()
        if isinstance(value, str) and value.startswith("{arch}.")
    }
    ours = {
        "attention.scale", "attention.sliding_window", "attention.sliding_window_pattern",
        "attention.temperature_scale", "attn_logit_softcapping", "final_logit_softcapping",
        "embedding_scale", "residual_scale", "logit_scale", "rope.dimension_count",
        "rope.freq_base", "rope.freq_base_swa", "rope.scaling.type", "rope.scaling.factor",
        "rope.scaling.attn_factor", "rope.scaling.original_context_length",
        "rope.scaling.finetuned", "rope.scaling.yarn_log_multiplier",
        "rope.scaling.yarn_ext_factor", "rope.scaling.yarn_beta_fast",
        "rope.scaling.yarn_beta_slow",
    }  # fmt: skip
    assert ours <= theirs
    text = "".join(path.read_text() for path in SRC.glob("hparams_gguf*.py"))
    for key in ours:
        assert key.removeprefix("rope.").removeprefix("scaling.") in text, key
