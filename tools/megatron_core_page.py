#!/usr/bin/env python3
"""Writes docs/megatron-core.md from parallel/upstream_fixes.py: `megatron_core_page.py > docs/megatron-core.md`."""

import re
import sys
from collections import Counter

from megatron_cpt.parallel.upstream_fixes import FIXES, NEWEST_COMMIT, NEWEST_RELEASE, Fix

TEST = re.compile(r"(tests/[\w/]+\.py)::(\w+(?:\[[^]]*\])?)")
SUITE = """\
| Megatron-Core | Python | torch | result |
|---|---|---|---|
| 0.16.1, pinned | 3.11 | 2.13.0 | see the CI (`.ci/run`) |
| 0.19.2 | 3.12 | 2.13.0 | commit 2398c5e, 2026-11-29: 3,248 passed, 27 skipped, 8 failed |

On two cores of an AMD EPYC that other processes used too, the run took 68 minutes. Of the 8 failures:

- 4 were not of the release: 2 pages that were not written anew, the name of a module, a remark of shellcheck;
- 3 were of tests: a wait of the host fewer, a word in a warning of torch, a process that the release does not start;
- one was a fault: a resume with another `schedule.peak_lr` found no parameter group. It is mended
  (`checkpoint/load.py`).

The tests of the last two kinds were run again with 0.19.2 and passed.

The third table of `make parity` holds HybridModel to GPTModel ([After GPTModel](architecture.md#after-gptmodel)). With
0.19.2 all of its 71 rows had the same bits (commit 720f2a7, 2026-11-30): 17 kinds of models on one to four processes.
"""
UNIT_TESTS = """\
## Their own unit tests on a CPU

`python tools/megatron_core_tests.py CHECKOUT` runs Megatron-Core's unit tests on the CPU platform
(`parallel/cpu_platform.py`) and prints such a table. CHECKOUT is a clone of Megatron-LM at the tag of the installed
release. Tests of process groups run in 8 processes with gloo, and a file has a time limit.

| column | meaning |
|---|---|
| needs | failed: needs Transformer Engine, a GPU, another package, or data that is not there |
| theirs | failed: the test or Megatron-Core is at fault, as read in the source |
| not run | the time limit of the file was reached |

0.16.1, tests of commit 55ac708251 (tag core_v0.16.1, sources equal to the wheel's), Python 3.11, torch 2.13.0, AMD EPYC
with 2 cores that other work shared, 2026-11-28, 100 to 300 seconds a file:

| tests | passed | needs | theirs | skipped | not run |
|---|---:|---:|---:|---:|---:|
| 8 files of the top folder | 125 | 1 | | 2 | |
| `tensor_parallel/` | 18 | 9 | | | |
| `data/`, `optimizer/` | 148 | 6 | | 48 | |
| `pipeline_parallel/` | 81 | 27 | 1 | 9 | 2 |
| `distributed/` | 76 | 6 | | 5 | |
| `dist_checkpointing/` | 55 | 79 | 6 | 11 | 500 |
| `fusions/` | 22 | 4 | | | |
| 2 files of `models/` | 3 | 2 | | | |
| `transformer/` | 212 | 394 | 5 | 144 | 1 |
| all | 740 | 528 | 12 | 219 | 503 |

The last three rows are of 2026-11-30, 100 seconds a file.

0.19.2, tests of commit f8837c04ef (branch core_r0.19.0, version 0.19.1; four source files differ from the wheel's: the
quantization context of overlapped layers, and the text server), Python 3.12, the same machine and day, 75 seconds a
file, a part of the files:

| tests | passed | needs | theirs | skipped | not run |
|---|---:|---:|---:|---:|---:|
| 3 files of the top folder | 36 | | | | |
| `tensor_parallel/` | 30 | 10 | | | |
| `optimizer/` | 26 | | | | |
| `pipeline_parallel/` | 34 | 27 | 7 | 11 | |
| `distributed/test_param_and_grad_buffer.py` | 40 | | | | 61 |
| `fusions/`, 2 files of `models/` | 59 | 6 | | | |
| `transformer/` | 518 | 452 | | 226 | 171 |
| all | 743 | 495 | 7 | 237 | 232 |

Those of `optimizer/`, `pipeline_parallel/`, `fusions/`, `models/` and `transformer/` are of 2026-11-30, 45 seconds a
file. Without Transformer Engine, that release's specs of GPTModel fail; most of `needs` is that. The seven faults
follow a test that failed so and left its state behind.

Of those in `needs` at 0.16.1, some 200 want a GPU for kernels of Triton, some 200 Transformer Engine, and 65 the
package Emerging Optimizers. Of the twelve faults, five are the search for the `step` of torch's AdamW among the
tensors, which is replaced here (`parallel/patches.py`). Five ask for the same bits of sums in bf16 over different
numbers of tokens. One test makes one group of other ranks on each rank, which gloo does not forgive. One writes into
a folder before rank 0 has made it. Most of what was not run is `test_layer_wise_optimizer.py` and `test_optimizer.py`
of `dist_checkpointing/`.

One fault of the CPU platform was found and mended: a shard of a checkpoint that is asked for on CUDA
(`ShardedTensor.init_data`) failed, as its function is the default of an argument. One test of `test_fully_parallel.py`
failed by it, and six behind that one.
"""
HEAD = f"""\
# Megatron-Core

Written by `tools/megatron_core_page.py` from
[`megatron_cpt/parallel/upstream_fixes.py`](../megatron_cpt/parallel/upstream_fixes.py).

## Releases

0.16.1 is pinned: it is the last release that installs on Python 3.11. Releases up to 0.19 are accepted; from 0.17 on
they need Python 3.12. `parallel/mcore_compat.py` has what differs between them, and `parallel/patches.py` what is
replaced. `make test MCORE=0.19.2 PYTHON=python3.12` installs another release into an environment of its own,
`.venv-mcore-0.19.2`, and runs the tests there. `make install` takes the same words.

Results of the suite of CI (`make test-ci`) without a GPU:

{SUITE}
{UNIT_TESTS}
## What a newer release asks for

A test fails where the installed release is newer than {NEWEST_RELEASE}, the newest one that was looked at. Then:

1. Read what was corrected: `git log core_v{NEWEST_RELEASE}..core_vNEW -- megatron/core` in a clone of Megatron-LM.
2. Add a row to `FIXES` for each fix of what is used here (`grep -rn megatron.core megatron_cpt`), with its test or its
   reason. Change `NEWEST_RELEASE` and `NEWEST_COMMIT`, and for a new minor release the range in `pyproject.toml` and in
   `tools/install.sh`.
3. Run `make test-ci MCORE=NEW PYTHON=python3.12` and `tools/megatron_core_tests.py`, and write this page again.

## Fixes of Megatron-LM since 0.16.1

The log of Megatron-LM's main branch was read from where 0.16 begins up to commit {NEWEST_COMMIT}, on the
paths that are imported here: distributed checkpoints, data parallelism, optimizer, pipeline schedules, tensor
parallelism, layers, experts, GPTModel and its embeddings. The tables have the fixes of what a run can reach, and the
open pull requests that were found. They leave out three kinds:

- what is imported where there is no GPTModel alone: HybridModel ([After GPTModel](architecture.md#after-gptmodel));
- what is never imported, or refused: FSDP, inference, Mamba's layers, latent attention, multimodal models,
  optimizers other than Adam, tokenizers;
- what is off unless it is passed through, and was never run here: CUDA graphs, multi-token prediction, further
  dispatchers of experts.

An open report of 2026-09-17 (issue 7452) lists further faults of composed layouts. Those of it that were read need a
padding mask, gathered logits or attention sinks, which no supported model has. `make parity` compares whole layouts
with one process.

| here | meaning |
|---|---|
| mended | numbers are right in every release; the test fails without the mending |
| refused | what would meet the fault is an error with a message; the test fails without the refusal |
| not hit | a run cannot meet it, for the reason or by the test given |
| open | a run can meet it, on a GPU alone; it was not reproduced |

"""


def main() -> None:
    """Prints the page."""
    sys.stdout.write(page())


def page() -> str:
    """The whole page: one table for each part of Megatron-Core."""
    counts = Counter(fix.here for fixes in FIXES.values() for fix in fixes)
    total = ", ".join(f"{counts[word]} {word}" for word in ("mended", "refused", "not hit", "open"))
    tables = [table(part, fixes) for part, fixes in FIXES.items()]
    return "\n".join([HEAD + f"{counts.total()} fixes: {total}.\n", *tables])


def table(part: str, fixes: tuple[Fix, ...]) -> str:
    """The fixes of one part as a Markdown table."""
    rows = [f"### {part.capitalize()}\n", "| pull request | date | fault | first release | here | shown by |"]
    rows.append("|---|---|---|---|---|---|")
    for fix in fixes:
        shown = TEST.sub(r"[`\2`](../\1)", fix.shown_by)
        rows.append(f"| {fix.number} | {fix.date} | {fix.fault} | {release(fix)} | {fix.here} | {shown} |")
    return "\n".join(rows) + "\n"


def release(fix: Fix) -> str:
    """The first release that has a fix, in words."""
    merged = {"main": "merged", "open": "open"}.get(fix.fixed_in)
    return f"none up to {NEWEST_RELEASE} ({merged})" if merged else fix.fixed_in


if __name__ == "__main__":
    main()
