import numpy as np
from numpy.typing import NDArray

def uniform(seed: int, choice: int, position: int) -> float: ...
def philox(counter: list[int], key: list[int]) -> list[int]: ...
def exp_neg(x: NDArray[np.float32]) -> NDArray[np.float32]: ...

class Chain:
    def __init__(
        self,
        *,
        n_vocab: int,
        temperature: float,
        top_k: int,
        top_p: float,
        min_p: float,
        repetition_penalty: float,
        seed: int,
        choice: int,
    ) -> None: ...
    def see(self, token_ids: list[int] | tuple[int, ...]) -> None: ...

class Sampler:
    def __init__(self) -> None: ...
    def draw(self, chain: Chain, logits: NDArray[np.float32], row: int, position: int) -> int: ...
    def logprobs(
        self, logits: NDArray[np.float32], row: int, n_vocab: int, token_id: int, n_top: int
    ) -> tuple[float, list[tuple[int, float]]]: ...
