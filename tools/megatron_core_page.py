#!/usr/bin/env python3
"""Writes docs/megatron-core.md from parallel/upstream_fixes.py: `megatron_core_page.py > docs/megatron-core.md`."""

import re
import sys
from collections import Counter

from megatron_cpt.parallel.upstream_fixes import FIXES, NEWEST_COMMIT, NEWEST_RELEASE, Fix

TEST = re.compile(r"(tests/[\w/]+\.py)::(\w+(?:\[[^]]*\])?)")
SUITE = """\
| Megatron-Core | Python | torch | result | commit |
|---|---|---|---|---|
| 0.16.1, pinned | 3.11 | 2.13.0 | `.ci/run` runs it for every change | |
| 0.19.2 | 3.12 | 2.13.0 | passed with version 0.1; not run whole since | |
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

Results of the whole suite (`make test`) without a GPU:

{SUITE}
## What a newer release asks for

A test fails where the installed release is newer than {NEWEST_RELEASE}, the newest one that was looked at. Then:

1. Read what was corrected: `git log core_v{NEWEST_RELEASE}..core_vNEW -- megatron/core` in a clone of Megatron-LM.
2. Add a row to `FIXES` for each fix of what is used here (`grep -rn megatron.core megatron_cpt`), with its test or its
   reason. Change `NEWEST_RELEASE` and `NEWEST_COMMIT`, and for a new minor release the range in `pyproject.toml` and in
   `tools/install.sh`.
3. Run `make test MCORE=NEW PYTHON=python3.12`, and write this page again.

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
