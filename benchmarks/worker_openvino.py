"""The OpenVINO GenAI side: `worker_openvino.py FOLDER N_THREADS MAX_SEQ_LEN int4|int8 [GROUP]`.

Everything runs through its continuous batching: its other way, one stateful model per sequence,
is less than half as fast on prompts and no faster on steps.
"""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import openvino
import openvino_genai as genai
from worker import serve

# Values of an activation that share a scale: 32 unless told, as with the other engines. More are
# coarser and a fifth faster; weights in groups of 64 allow no more than that.
_GROUP = {"int4": 64, "int8": 128}


class OpenVinoSide:
    """Greedy steps on the CPU, cache in OpenVINO's default of 8 bits, each variant a pipeline."""

    def __init__(
        self, folder: str, n_threads: int, max_seq_len: int, weights: str, group: int | None
    ) -> None:
        self._folder, self._n_threads, self._max_seq_len = folder, n_threads, max_seq_len
        self._weights = weights
        self._group = group or _GROUP[weights]
        self._pipelines: dict[tuple[str, bool], Any] = {}
        self._n_requests = 0

    def about(self) -> dict[str, Any]:
        return {
            "engine": f"OpenVINO GenAI {genai.__version__.split('-')[0]}",
            "weights": self._weights,
            "activation_group": self._group,
        }

    def variants(self, n_seqs: int) -> list[str]:
        """What attention and norms compute in."""
        return ["bf16", "f32"]

    def keep_only(self, variants: Sequence[str]) -> None:
        for key in [key for key in self._pipelines if key[0] not in variants]:
            del self._pipelines[key]

    def _pipeline(self, variant: str, keep: bool) -> Any:
        key = (variant, keep)
        if key not in self._pipelines:
            scheduler = genai.SchedulerConfig()
            scheduler.max_num_batched_tokens = self._max_seq_len
            scheduler.enable_prefix_caching = keep
            properties = {
                "INFERENCE_NUM_THREADS": self._n_threads,
                "INFERENCE_PRECISION_HINT": variant,
                "DYNAMIC_QUANTIZATION_GROUP_SIZE": self._group,
            }
            self._pipelines[key] = genai.ContinuousBatchingPipeline(
                self._folder, scheduler, "CPU", properties
            )
        return self._pipelines[key]

    def run(
        self, prompts: Sequence[Sequence[int]], n_steps: int, *, variant: str, keep: bool
    ) -> float:
        """Seconds of the prompt, or of the steps after it."""
        pipeline = self._pipeline(variant, keep)
        config = genai.GenerationConfig()
        config.do_sample, config.ignore_eos, config.eos_token_id = False, True, 2
        config.max_new_tokens = n_steps + 1
        start = time.perf_counter()
        handles = [self._submit(pipeline, prompt, config) for prompt in prompts]
        pipeline.step()
        if n_steps:
            start = time.perf_counter()
            for _ in range(n_steps):
                pipeline.step()
        seconds = time.perf_counter() - start
        self._check(pipeline, handles, n_steps + 1)
        return seconds

    def _submit(self, pipeline: Any, prompt: Sequence[int], config: Any) -> Any:
        self._n_requests += 1
        ids = openvino.Tensor(np.array([prompt], dtype=np.int64))
        return pipeline.add_request(self._n_requests, ids, config)

    def _check(self, pipeline: Any, handles: Sequence[Any], n_new: int) -> None:
        made = [len(handle.read_all()[0].generated_ids) for handle in handles]
        if pipeline.has_non_finished_requests() or made != [n_new] * len(handles):
            raise RuntimeError(f"{made} tokens and not {n_new}: the steps were not what they seem")


def main() -> None:
    folder, n_threads, max_seq_len, weights = sys.argv[1:5]
    group = int(sys.argv[5]) if len(sys.argv) > 5 else None
    with contextlib.suppress(KeyboardInterrupt):
        serve(OpenVinoSide(folder, int(n_threads), int(max_seq_len), weights, group))


if __name__ == "__main__":
    main()
