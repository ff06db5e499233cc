"""The kin of Llama that have other tensors. Their other numbers stand in the config."""

from __future__ import annotations

from dataclasses import replace

from rllama.models.llama import Llama
from rllama.models.table import T

_QKV_BIASES = frozenset({"layers.{i}.bq", "layers.{i}.bk", "layers.{i}.bv"})
HEAD_NORMS = (T("layers.{i}.q_norm", "d"), T("layers.{i}.k_norm", "d"))
_POST_NORMS = (T("layers.{i}.post_attn_norm", "D"), T("layers.{i}.post_ffn_norm", "D"))
_PRE_NORMS = frozenset({"layers.{i}.attn_norm", "layers.{i}.ffn_norm"})


class Qwen2(Llama):
    """Llama with biases of queries, keys and values.

    Source:  arXiv 2407.10671
    """

    TENSORS = tuple(
        replace(row, optional=row.optional and row.name not in _QKV_BIASES) for row in Llama.TENSORS
    )


class Qwen3(Llama):
    """Llama whose query and key heads are each normed before they turn.

    Source:  arXiv 2505.09388
    """

    TENSORS = (*Llama.TENSORS, *HEAD_NORMS)


class Gemma2(Llama):
    """Llama with a norm behind each branch too.

    Source:  arXiv 2408.00118
    """

    TENSORS = (*Llama.TENSORS, *_POST_NORMS)


class Exaone4(Llama):
    """Llama with norms behind the branches alone, and normed query and key heads.

    Source:  arXiv 2507.11407
    """

    TENSORS = (
        *(row for row in Llama.TENSORS if row.name not in _PRE_NORMS),
        *_POST_NORMS,
        *HEAD_NORMS,
    )


class Gemma3(Gemma2):
    """Gemma 2 with normed query and key heads.

    Source:  arXiv 2503.19786
    """

    TENSORS = (*Gemma2.TENSORS, *HEAD_NORMS)


class Olmo2(Llama):
    """Llama with norms behind the branches alone, and queries and keys normed over all heads.

    Source:  arXiv 2501.00656
    """

    TENSORS = (
        *(row for row in Llama.TENSORS if row.name not in _PRE_NORMS),
        *_POST_NORMS,
        T("layers.{i}.q_norm", "H*d"),
        T("layers.{i}.k_norm", "G*d"),
    )
