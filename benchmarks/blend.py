#!/usr/bin/env python3
"""From a configuration to the first global batch: our blend against Megatron-Core's builder, on the same datasets.

1. Starts. 1, 100, 1,000 and 3,000 sources that hold 10^7 sequences in all, for a run that reads them all once, up to
   the first global batch as tensors: ours; Megatron-Core's builder without a cache; with the cache that it left.
2. A long run. Ours with 1,000 sources of 10^7 sequences each.
3. The loader, whole global batches in the order's own order, against reading the same bytes with pread and doing
   nothing with them: from the page cache, and with the cache emptied first.
4. What a rank of 1,024 computes in a run of 15T tokens over 3,000 sources.

Each measurement is a process of its own; imports are done before its clock starts. Blends and builders are in
blend_starts.py, loader and simulation in blend_reading.py.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from blend_reading import measure_loader, measure_pread, simulate, write_text
from blend_starts import (
    BATCH,
    LENGTH,
    SEQUENCES,
    measure_megatron,
    measure_ours,
    raise_descriptor_limit,
    write_long_sources,
    write_sources,
)
from machine import machine, print_result

SIZES = (1, 100, 1000, 3000)
QUOTED = 1000
"""Sources at which the ratio is taken."""
MEASURES = {
    "ours": measure_ours,
    "megatron": measure_megatron,
    "megatron_cached": measure_megatron,
    "long": measure_ours,
    "loader": measure_loader,
    "pread": measure_pread,
    "simulation": simulate,
}

Figures = dict[str, Any]


def main() -> None:
    """Measures everything and prints the tables, or (with --measure) one measurement as JSON."""
    parser = argparse.ArgumentParser(description="Blend of ours and of Megatron-Core: time to the first global batch.")
    parser.add_argument("--measure", choices=MEASURES, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--sources", type=int, default=0, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        prefixes = [str(options.folder / f"s{number:04}") for number in range(options.sources)]
        print(json.dumps(MEASURES[options.measure](prefixes)))
        return
    print(f"{machine()}\n")
    starts = compare_starts()
    long_run = start_of_long_run()
    reading = compare_reading()
    simulated = simulate_long_run()
    quoted = starts[QUOTED]
    ratio = quoted["megatron"]["seconds"] / quoted["ours"]["seconds"]
    print(f"at {QUOTED:,} sources Megatron-Core takes {ratio:.1f} times as long as ours\n")
    details = {
        "machine": machine(),
        "starts": starts,
        "long_run": long_run,
        "reading": reading,
        "simulation": simulated,
    }
    print_result("blend", ratio, "BlendedMegatronDatasetBuilder without a cache, 1,000 sources", details)


def compare_starts() -> dict[int, dict[str, Figures]]:
    """The first table."""
    print(
        f"{SEQUENCES:,} sequences of {LENGTH} tokens, global batches of {BATCH}; "
        f"at most {raise_descriptor_limit():,} open files"
    )
    print(f"{'sources':>7}  {'':16}  {'seconds':>9}  {'memory, MiB':>11}", flush=True)
    table: dict[int, dict[str, Figures]] = {}
    for sources in SIZES:
        with tempfile.TemporaryDirectory() as name:
            write_sources(Path(name), sources)
            table[sources] = {}
            for who in ("ours", "megatron", "megatron_cached"):
                figures = in_process(who, Path(name), sources)
                table[sources][who] = figures
                shown = f"{figures['seconds']:>9.3f}  {figures['memory_mib']:>11.1f}"
                print(f"{sources:>7}  {who:16}  {shown}", flush=True)
    return table


def start_of_long_run() -> Figures:
    """1,000 sources of 10^7 sequences each."""
    with tempfile.TemporaryDirectory() as name:
        write_long_sources(Path(name), QUOTED)
        figures = in_process("long", Path(name), QUOTED)
    print(
        f"\n{QUOTED:,} sources of {SEQUENCES:,} sequences each: {figures['seconds']:.3f} s, of which "
        f"{figures['opening_seconds']:.3f} s are the opening of files; {figures['memory_mib']:.1f} MiB",
        flush=True,
    )
    return figures


def compare_reading() -> Figures:
    """The loader against pread."""
    with tempfile.TemporaryDirectory(dir=os.environ.get("TMPDIR")) as name:
        sources = write_text(Path(name))
        found = {who: in_process(who, Path(name), sources) for who in ("loader", "pread")}
    print(f"\n{'reading':24}  {'sequences/s':>11}  {'MB/s':>8}  {'pread takes':>11}")
    for state in ("cached", "cold"):
        for who, figures in found.items():
            one = figures[state]
            share = found["loader"][state]["seconds"] / one["seconds"]
            print(f"{f'{who}, {state}':24}  {one['sequences_per_second']:>11,.0f}  {one['mb_per_second']:>8.0f}"
                  f"  {f'1 / {share:.2f}' if who == 'pread' else '':>11}", flush=True)  # fmt: skip
    ratios = {
        state: found["loader"][state]["seconds"] / found["pread"][state]["seconds"] for state in ("cached", "cold")
    }
    return {**found, "loader_over_pread": ratios}


def simulate_long_run() -> Figures:
    """15T tokens, 3,000 sources, 1,024 replicas."""
    with tempfile.TemporaryDirectory() as name:
        figures = in_process("simulation", Path(name), 0)
    print(
        f"\n15T tokens, 3,000 sources, 1,024 replicas: {figures['start_seconds']:.3f} s and "
        f"{figures['memory_mib']:.1f} MiB a rank at the start, "
        f"{figures['microseconds_a_step']:.0f} us a step and rank for its {figures['sequences_a_rank']} sequences\n",
        flush=True,
    )
    return figures


def in_process(who: str, folder: Path, sources: int) -> Figures:
    """One measurement in a new process."""
    words = [sys.executable, __file__, "--measure", who, "--folder", str(folder), "--sources", str(sources)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    output = subprocess.run(words, env=environment, stdout=subprocess.PIPE, text=True, check=True).stdout
    return dict(json.loads(output.splitlines()[-1]))


if __name__ == "__main__":
    main()
