"""Recipe: how a float matrix is quantised when a model is loaded."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from rllama.dtypes import Q4_0, Q8_0, Q8_F32, DType, dtype_by_name

RecipeKind = Literal["q8_0", "q4_0", "q4_k", "symmetric_8", "symmetric_4", "asymmetric_4"]

# In the order of the kernels' rl_recipe_kind: what each makes.
RECIPE_TYPES: dict[RecipeKind, DType] = {
    "q8_0": Q8_0,
    "q4_0": Q4_0,
    "q4_k": dtype_by_name("Q4_K"),
    "symmetric_8": Q8_F32,
    "symmetric_4": Q4_0,
    "asymmetric_4": dtype_by_name("Q4_1"),
}


@dataclass(frozen=True, slots=True)
class Recipe:
    """A rule that turns rows of floats into blocks.

    Units:   group columns under one scale, 0 for all of a row
    Notes:   the first three are ggml's formats by ggml's rules and have no group; scales of the
             symmetric ones are rounded to scale_dtype, None: to the type of the weight
    """

    kind: RecipeKind
    group: int = 0
    scale_dtype: DType | None = None

    @property
    def dtype(self) -> DType:
        """What it makes."""
        return RECIPE_TYPES[self.kind]

    def fits(self, n_cols: int) -> bool:
        """Whether rows of this length are whole blocks."""
        return n_cols % self.dtype.block_len == 0
