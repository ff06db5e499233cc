"""What this machine can do at best: DRAM read bandwidth and int8, bf16 and f32 peaks.

The bandwidth is kept for the stats line of `rllama`, which tells its share of it from then on.
"""

from __future__ import annotations

import argparse
import sys

from common import append_record, check_load, machine, usable_cores
from limits import Peaks

from rllama.yardstick import save_bandwidth


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--threads", type=int, default=usable_cores())
    parser.add_argument("--passes", type=int, default=9, help="reads of the whole memory")
    parser.add_argument("--memory-mb", type=int, default=1024)
    parser.add_argument("--require-idle", action="store_true", help="refuse on a busy machine")
    parser.add_argument("--no-record", action="store_true", help="append no line to results/")
    args = parser.parse_args()
    busy = check_load(refuse=args.require_idle)
    peaks = Peaks(args.threads, memory_bytes=args.memory_mb << 20)
    try:
        limits = peaks.measure(passes=args.passes)
        int8_name = peaks.int8_name
    finally:
        peaks.close()
    print(f"{machine()['cpu']}, {args.threads} threads")
    print(f"DRAM read  {limits.read / 1e9:8.1f} GB/s")
    for name, rate in (("int8", limits.int8), ("bf16", limits.bf16), ("f32", limits.f32)):
        note = f"  ({int8_name})" if name == "int8" and rate else ""
        print(f"{name:9s}  " + (f"{rate / 1e9:8.0f} Gop/s{note}" if rate else "not on this CPU"))
    kept = save_bandwidth(limits.read, args.threads)
    if kept is not None:
        print(f"kept in    {kept}")
    if not args.no_record:
        options = {"threads": args.threads, "passes": args.passes, "memory_mb": args.memory_mb}
        append_record("bandwidth", busy=busy, options=options, limits=limits.as_dict())
    return 0


if __name__ == "__main__":
    sys.exit(main())
