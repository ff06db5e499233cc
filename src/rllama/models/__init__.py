"""Architectures. A checkpoint names one; `find` gives the class that computes it."""

from __future__ import annotations

import difflib
from importlib import import_module

from rllama.errors import UnsupportedError
from rllama.models.base import Decoder

# What checkpoints call themselves -> "module:class". A look-alike is one more row.
ALIASES: dict[str, str] = {
    "llama": "llama:Llama",
    "LlamaForCausalLM": "llama:Llama",
    "mistral": "llama:Llama",
    "ministral": "llama:Llama",
    "ministral3": "llama:Llama",
    "mistral3": "llama:Llama",
    "granite": "llama:Llama",
    "phi3": "llama:Llama",
    "smollm3": "llama:Llama",
    "gemma": "llama:Llama",
    "qwen2": "kin:Qwen2",
    "qwen3": "kin:Qwen3",
    "gemma2": "kin:Gemma2",
    "gemma3": "kin:Gemma3",
    "gemma3_text": "kin:Gemma3",
    "olmo2": "kin:Olmo2",
    "olmo3": "kin:Olmo2",
    "exaone4": "kin:Exaone4",
    "seed_oss": "kin:Qwen2",
    "glm4": "kin:Gemma2",
    "ernie4_5": "llama:Llama",
    "helium": "llama:Llama",
    "mixtral": "experts:Mixtral",
    "qwen3_moe": "experts:Qwen3Moe",
    "qwen3moe": "experts:Qwen3Moe",
    "gpt_oss": "experts:GptOss",
    "gpt-oss": "experts:GptOss",
}

# Names that are well known and not computed here -> why. Prefixes, the longest match counts.
_NOT_HERE: dict[str, str] = {
    **dict.fromkeys(
        ("qwen3_next", "qwen3next", "qwen3_5", "qwen35", "qwen3_6", "qwen36", "qwen4", "mamba",
         "jamba", "falcon_h1", "falcon-h1", "falcon_mamba", "nemotron_h", "granitemoehybrid",
         "granitehybrid", "olmo_hybrid", "bamba", "zamba", "recurrent_gemma", "rwkv", "arwkv",
         "lfm2", "plamo2", "kimi_linear", "kimi-linear"),
        "it has recurrent, convolution or linear-attention layers",
    ),
    **dict.fromkeys(
        ("gemma3n", "gemma4"), "its layers share keys and have embeddings of their own"
    ),
    **dict.fromkeys(
        ("deepseek_v2", "deepseek_v3", "deepseek_v32", "deepseek_v4", "deepseek2", "deepseek3",
         "mistral4", "kimi_k2", "longcat", "minicpm3"),
        "it attends through latent keys and values (MLA)",
    ),
    **dict.fromkeys(
        ("clip", "siglip", "vit", "pixtral", "dinov", "mmproj", "whisper"),
        "it reads images or sound and writes no text",
    ),
    **dict.fromkeys(
        ("bert", "roberta", "modernbert", "modern-bert", "nomic-bert", "neo-bert", "eurobert",
         "jina-bert", "xlm-roberta", "gemma-embedding", "embedding_gemma", "llama-embed"),
        "it is an encoder: it writes no text",
    ),
    **dict.fromkeys(("t5", "bart", "mbart", "t5gemma", "t5encoder"),
                    "it has an encoder beside its decoder"),
    **dict.fromkeys(
        ("llava", "qwen2_vl", "qwen2_5_vl", "qwen2vl", "qwen3_vl", "qwen3vl", "mllama",
         "paligemma", "internvl", "idefics", "phi4_multimodal", "phi4mm"),
        "it is a model of images and text whose text part is not supported on its own",
    ),
    **dict.fromkeys(
        ("qwen2_moe", "qwen2moe", "granitemoe", "phimoe", "olmoe", "dbrx", "glm4_moe", "glm4moe",
         "ernie4_5_moe", "ernie4_5-moe", "minimax", "hunyuan_v1_moe", "hunyuan-moe", "bailingmoe",
         "bailing_moe", "dots1", "grok", "arctic", "jetmoe", "smallthinker"),
        "its mixture of experts is of another kind (shared experts, another router)",
    ),
    "llama4": "it attends in chunks",
}  # fmt: skip

_NEAR = 0.75  # how like a known name another must be to be taken for a slip


def find(arch: str) -> type[Decoder]:
    """The class of an architecture: one of ours, or a plug-in's.

    Raises:  UnsupportedError that says why or names the nearest
    """
    home = ALIASES.get(arch)
    if home is None:
        from rllama.models.plugins import find_plugin

        plugged = find_plugin(arch)
        if plugged is not None:
            return plugged
        raise UnsupportedError(_unknown(arch if len(arch) <= 40 else arch[:37] + "..."))
    module, _, name = home.partition(":")
    found: type[Decoder] = getattr(import_module(f"rllama.models.{module}"), name)
    return found


def _unknown(arch: str) -> str:
    prefix = max((p for p in _NOT_HERE if arch.lower().startswith(p)), key=len, default=None)
    if prefix is not None:
        return (f"architecture {arch!r} is not supported: it is not in this version, for "
                f"{_NOT_HERE[prefix]}")  # fmt: skip
    spelled = {name.replace("-", "").replace("_", ""): name for name in reversed(ALIASES)}
    known = sorted(name for name in spelled.values() if name.islower())
    near = difflib.get_close_matches(arch, known, n=1, cutoff=_NEAR)
    hint = f"; the nearest known one is {near[0]!r}" if near else ""
    return (f"architecture {arch!r} is not supported{hint} (known: {', '.join(known)}); "
            "docs/plugins.md tells how to add one")  # fmt: skip
