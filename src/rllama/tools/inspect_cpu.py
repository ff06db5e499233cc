"""What this machine can do for us: instruction sets and threads."""

from __future__ import annotations

import os
from typing import Any

from rllama._kernels import core
from rllama.cpu import CpuBackend
from rllama.threads import openmp_runtimes, usable_threads
from rllama.yardstick import cpu_name


def inspect_cpu() -> dict[str, Any]:
    """Levels compiled, usable and chosen, the threads and why, as plain data."""
    plan, backend = usable_threads(), CpuBackend()
    try:
        chosen = backend.isa
    finally:
        backend.close()
    forced = os.environ.get("RLLAMA_ISA")
    return {
        "cpu": cpu_name(),
        "levels": [
            {"name": name, "compiled": compiled, "usable": usable}
            for name, compiled, usable in core.isa_levels()
        ],
        "chosen": chosen,
        "chosen_because": "RLLAMA_ISA says so" if forced else "the best that is usable",
        "parallel": core.parallel_kind(),
        "openmp_libraries": openmp_runtimes(),
        "threads": {
            "count": plan.n_threads,
            "because": plan.reason,
            "allowed_cpus": plan.affinity,
            "physical_cores": plan.physical,
            "cpu_quota": plan.quota,
            "omp_num_threads": plan.omp_limit,
            "note": plan.note,
        },
    }
