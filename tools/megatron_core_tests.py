#!/usr/bin/env python3
"""Megatron-Core's own unit tests on this package's CPU platform, with a table of what became of them.

    git clone --depth 1 --branch core_v0.16.1 https://github.com/NVIDIA/Megatron-LM CHECKOUT
    python tools/megatron_core_tests.py CHECKOUT [PATH ...] [--markdown FILE] [--logs DIR]

CHECKOUT is at the tag of the megatron-core that is installed: the tests and `megatron.training` come from it, and
`megatron.core` is the installed one. PATH is a test file or a folder of them under CHECKOUT/tests/unit_tests; without
any, those of what megatron_cpt uses. A file that speaks of process groups runs in 8 processes with gloo, as the tests
are written for 8 GPUs, any other in one. A test passes where it fails on no rank. After a test on which the ranks
disagree, or that hangs, the next one begins with new processes.

A failure is explained by rules (`CAUSES`) on its error and the file that raised it; one that no rule knows is listed as
not explained. Nothing is downloaded. The exit code is 0 if the tests could be run, whatever became of them.
"""

import argparse
import collections
import contextlib
import datetime
import filecmp
import json
import os
import platform
import re
import signal
import socket
import sys
import tempfile
import time
from dataclasses import dataclass, field
from multiprocessing.sharedctypes import RawArray
from pathlib import Path
from typing import Any

import megatron_core_plugin as plugin
import pytest
import torch

from megatron_cpt.commands.dispatch import report_error
from megatron_cpt.config.errors import BadInput, Fault
from megatron_cpt.parallel import cpu_platform
from megatron_cpt.runs.folder import ExitCode
from megatron_cpt.runs.processes import OFFLINE, die_with_parent

USED = (
    "test_num_microbatches_calculator.py",
    "test_optimizer_param_scheduler.py",
    "test_local_multi_tensor_fns.py",
    "test_parallel_state.py",
    "test_process_groups_config.py",
    "test_basic.py",
    "test_optimizer.py",
    "test_utils.py",
    "tensor_parallel/test_*.py",
    "data/test_*.py",
    "optimizer/test_*.py",
    "pipeline_parallel/test_*.py",
    "distributed/test_*.py",
    "dist_checkpointing/test_*.py",
    "fusions/test_*.py",
    "models/test_gpt_model.py",
    "models/test_base_embedding.py",
    "transformer/test_*.py",
    "transformer/moe/test_*.py",
)
"""Files of tests/unit_tests on what megatron_cpt uses, as patterns, in the order in which they run."""

PROCESSES = 8
SEVERAL = re.compile(r"\bUtils\b|torch\.distributed|parallel_state")
"""In a file that wants PROCESSES; any other runs in one."""

TEST_LIMIT = 150
"""Seconds without a test that ends, after which the one that runs counts as hanging."""

NEEDS, OURS, THEIRS, HANGS, UNEXPLAINED = "needs", "ours", "theirs", "hangs", "not explained"


@dataclass(frozen=True)
class Cause:
    """A rule that explains failures."""

    error: str
    """A pattern in the error and its message."""
    kind: str
    """NEEDS, THEIRS or HANGS."""
    cause: str
    r"""What is told; \1 stands for the pattern's first group."""
    test: str = ""
    """A pattern in the name of the test. Where it is given, the test has been examined by hand."""


CAUSES = (
    Cause(r"No module named 'transformer_engine|[Tt]ransformer[ -]?[Ee]ngine", NEEDS, "Transformer Engine"),
    Cause(r"NameError: name '(?:te|TE\w*|FP8GlobalStateManager|Fp8Padding)' is not", NEEDS, "Transformer Engine"),
    Cause(r"No module named '(?!megatron|tests)(\w+)", NEEDS, r"the package \1"),
    Cause(r"^\w+: ([\w -]+?) (?:package )?is not installed", NEEDS, r"the package \1"),
    Cause(r"FixtureLookupError: \('mocker'", NEEDS, "the package pytest-mock"),
    Cause(r"/opt/data", NEEDS, "the data sets of Megatron-LM's test machines"),
    Cause(r"huggingface\.co|LocalEntryNotFound|OfflineMode", NEEDS, "files of the Hugging Face Hub"),
    Cause(r"Torch not compiled with CUDA|Found no NVIDIA driver|No CUDA GPUs are available", NEEDS, "a GPU"),
    Cause(r"Cannot re-initialize CUDA in forked subprocess", NEEDS, "a GPU"),
    Cause(r"Tried using cudagraphs with RNG", NEEDS, "a GPU"),
    Cause(r"assert 'cpu' == 'cuda'", NEEDS, "a GPU"),
    Cause(r"'(?:function|_GeneratorContextManager)' object is not subscriptable", NEEDS, "a GPU: kernels of Triton"),
    Cause(r"0 active drivers", NEEDS, "a GPU: kernels of Triton"),
    Cause(r"argument 'index' \(position 2\) must be int, not torch.device", NEEDS, "a GPU"),
    Cause(r"Grouped GEMM is not available", NEEDS, "the package grouped_gemm"),
    Cause(r"not supported by torch LayerNorm", NEEDS, "apex or Transformer Engine"),
    Cause(r"apply_rope_fusion is not available", NEEDS, "Transformer Engine"),
    Cause(
        r"",
        NEEDS,
        "Transformer Engine",
        test=r"test_(te_layers_batch_invariant|attention_variant_dsa|absorbed_mla|dsa_native_parity)\.py::",
    ),
    # From 0.19 on, GPTModel's specs call a provider that is None without it, and mocks of it take its place elsewhere.
    Cause(
        r"'NoneType' object is not callable|MagicMock found|StopIteration: when instantiating",
        NEEDS,
        "Transformer Engine",
        test=r"^(transformer|pipeline_parallel)/",
    ),
    Cause(
        r"assert False",
        NEEDS,
        "a GPU",
        test=r"::test_chunk_offload_handler_respects_tensor_opt_out_flags",
    ),
    Cause(
        r"num microbatches calculator is already initialized",
        THEIRS,
        "a test of the file that failed before leaves its state behind",
        test=r"test_pipeline_layout\.py::",
    ),
    Cause(
        r"'Tensor' object has no attribute '(clone_state|manual_seed)'",
        NEEDS,
        "a GPU",
        test=r"tensor_parallel/test_random\.py::",
    ),
    Cause(
        r"assert False",
        NEEDS,
        "a GPU: the platform's one random state is both the CPU's and CUDA's",
        test=r"tensor_parallel/test_initialization\.py::Test::test_(col|row|embedding)_init",
    ),
    Cause(
        r"Mock object has no attribute 'weight'",
        NEEDS,
        "Transformer Engine",
        test=r"tensor_parallel/test_initialization\.py::Test::test_te_",
    ),
    Cause(
        r"ProcessGroupGloo::allgather: invalid tensor size",
        NEEDS,
        "NCCL: gloo gathers matrices into no vector",
        test=r"::test_gather_split_1d_tensor",
    ),
    Cause(
        r"'NoneType' object has no attribute 'finalize'",
        NEEDS,
        "files of the Hugging Face Hub",
        test=r"data/test_preprocess_data\.py::test_preprocess_data_gpt",
    ),
    Cause(
        r"",
        THEIRS,
        "the ranks make one group of different ranks, which NCCL lets pass until it is used",
        test=r"test_schedules\.py::test_forward_backward_pipelining_with(out)?_interleaving_with_custom_pgs",
    ),
    Cause(
        r"Parent directory \S+ does not exist",
        THEIRS,
        "the ranks write into a folder that rank 0 makes, and do not wait for it",
        test=r"dist_checkpointing/test_safe_globals\.py::",
    ),
    Cause(
        r"assert False",
        THEIRS,
        "two sums in bf16 over different numbers of tokens are to have the same bits",
        test=r"test_aux_loss\.py::TestPaddingMaskAuxLoss::test_padding_mask_with_z_loss",
    ),
    Cause(
        r"^KeyError: 'step'",
        THEIRS,
        "the optimizer looks for the `step` of torch's AdamW among the tensors (megatron_cpt replaces that)",
    ),
    Cause(r"^(?:hangs: |a process died).*", HANGS, r"\g<0>"),
)


@dataclass
class Result:
    """What became of a test."""

    outcome: str = "passed"
    """passed, skipped, failed, or not run."""
    errors: list[dict[str, Any]] = field(default_factory=list)
    """Of all ranks, as megatron_core_plugin.py writes them."""

    def cause(self, test: str) -> tuple[str, str]:
        """Kind and cause of a failure of the test of this name."""
        # What a rank says that another one left comes after what that one says.
        errors = sorted(self.errors, key=lambda error: (bool(LEFT.search(error["error"])), error["time"]))
        for error in errors:
            for rule in CAUSES:
                if re.search(rule.test, test) and (match := re.search(rule.error, error["error"])):
                    return rule.kind, match.expand(rule.cause)
        frames = errors[0]["frames"]
        if frames and frames[-1].startswith("megatron_cpt/") and not LEFT.search(errors[0]["error"]):
            return OURS, errors[0]["error"]
        return UNEXPLAINED, errors[0]["error"].splitlines()[0][:200]


LEFT = re.compile(r"Connection (?:was likely )?(?:closed|reset)|timed out|timeout", re.IGNORECASE)
"""In the error of a rank that waited for another one."""


def main(arguments: list[str]) -> int:
    """Runs the tests and prints the table; returns the exit code."""
    args = _parser().parse_intermixed_args(arguments)
    checkout = args.checkout.resolve()
    files = test_files(checkout, args.paths)
    if not cpu_platform.installed():
        raise BadInput(
            Fault("this machine has CUDA", "the CPU platform is not used here.", "Run the tests as Megatron-LM does.")
        )
    os.environ.update(OFFLINE, OMP_NUM_THREADS="1")
    plugin.prepare(checkout)
    results: dict[str, dict[str, Result]] = {}
    with tempfile.TemporaryDirectory(prefix="megatron-core-tests-") as scratch:
        logs = args.logs or Path(scratch) / "logs"
        logs.mkdir(parents=True, exist_ok=True)
        for number, file in enumerate(files):
            start = time.monotonic()
            run = FileRun(checkout, file, Path(scratch) / str(number), logs, args.time_limit)
            results[file] = run.run()
            print(_line(file, results[file], time.monotonic() - start, run.world), flush=True)
    page = "\n".join(report(checkout, results))
    print(page)
    if args.markdown:
        args.markdown.write_text(page + "\n", encoding="utf-8")
    return ExitCode.DONE


UNIT_TESTS = Path("tests/unit_tests")


def test_files(checkout: Path, paths: list[str]) -> list[str]:
    """The test files under paths, or else those of USED, relative to tests/unit_tests, each once."""
    root = checkout / UNIT_TESTS
    if not (root / "__init__.py").exists():
        raise BadInput(
            Fault(str(checkout), "it holds no unit tests.", "Give a checkout of Megatron-LM at the installed release.")
        )
    if missing := [name for name in paths if not (root / name).exists()]:
        raise BadInput(*(Fault(name, f"there is no such path in {root}.", "Name another one.") for name in missing))
    found = [path for name in paths for path in [root / name, *sorted((root / name).rglob("*.py"))]]
    if not paths:
        found = [path for pattern in USED for path in sorted(root.glob(pattern))]
    return list(dict.fromkeys(str(path.relative_to(root)) for path in found if path.match("test_*.py")))


class FileRun:
    """The tests of one file, in as many sets of processes as they need."""

    def __init__(self, checkout: Path, file: str, scratch: Path, logs: Path, limit: float) -> None:
        self._checkout, self._file, self._scratch, self._limit = checkout, file, scratch, limit
        text = (checkout / UNIT_TESTS / file).read_text(encoding="utf-8")
        self.world = PROCESSES if SEVERAL.search(text) else 1
        self._progress = plugin.Progress(self.world, RawArray)
        name = file.removesuffix(".py").replace(os.sep, ".")
        self._log = logs / f"{name}.log"
        self._records = [logs / f"{name}.{rank}.jsonl" for rank in range(self.world)]

    def run(self) -> dict[str, Result]:
        """What became of each test, by its name."""
        for path in [self._log, *self._records]:
            path.unlink(missing_ok=True)
        end = time.monotonic() + self._limit
        self._run_from(0, None, end)
        results = self._read()
        for index, (test, result) in enumerate(list(results.items())):
            # What an earlier test left behind may have failed it.
            if result.outcome == "failed" and result.cause(test)[0] == UNEXPLAINED and test != self._file:
                self._run_from(index, index + 1, end)
        return self._read()

    def _run_from(self, first: int, last: int | None, end: float) -> None:
        """Runs the tests from one up to another, in new processes wherever they are needed."""
        while (last is None or first < last) and time.monotonic() < end:
            self._progress.start(first)
            why = self._run_processes(first, last, end)
            if why in ("ended", "time limit"):
                return
            if why == "restart":
                first = max(self._progress.done)
            else:
                first = min(self._progress.done) + 1
                self._write_end(why)

    def _run_processes(self, first: int, last: int | None, end: float) -> str:
        """Runs tests in one set of processes: `ended`, `restart`, or what stopped the test that ran last."""
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        processes = [self._fork(rank, port, first, last) for rank in range(self.world)]
        codes: dict[int, int] = {}
        moved, done = time.monotonic(), sum(self._progress.done)
        try:
            while True:
                for process in processes:
                    if process not in codes and (ended := os.waitpid(process, os.WNOHANG))[0]:
                        codes[process] = os.waitstatus_to_exitcode(ended[1])
                if plugin.RESTART in codes.values():
                    return "restart"
                if len(codes) == len(processes) or min(codes.values(), default=0) < 0:
                    break
                if sum(self._progress.done) != done:
                    moved, done = time.monotonic(), sum(self._progress.done)
                if time.monotonic() > end:
                    return "time limit"
                if time.monotonic() > moved + TEST_LIMIT:
                    return f"hangs: no end within {TEST_LIMIT} s"
                time.sleep(0.05)
        finally:
            for process in processes:  # all at once: no rank should see another one end
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process, signal.SIGSTOP)
            for process in processes:
                self._kill(process, process in codes)
        if min(codes.values()) < 0:
            return f"a process died of {signal.Signals(-min(codes.values())).name}"
        if FAILED_TO_START in codes.values():
            return f"a process could not run pytest: {self._log} says why"
        return "ended"

    def _kill(self, process: int, ended: bool) -> None:
        """Ends a rank and what it started."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process, signal.SIGKILL)
        if not ended:
            os.waitpid(process, 0)

    def _fork(self, rank: int, port: int, first: int, last: int | None) -> int:
        """Starts a rank, which is the first process of a group of its own."""
        sys.stdout.flush()
        process = os.fork()
        if process:
            return process
        status = FAILED_TO_START
        try:
            os.setsid()
            die_with_parent()
            status = self._serve(rank, port, first, last)
        finally:
            os._exit(status)

    def _serve(self, rank: int, port: int, first: int, last: int | None) -> int:
        """In the new process: pytest's exit status."""
        torch.set_num_threads(1)
        log = os.open(self._log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        os.dup2(log, 1)
        os.dup2(log, 2)
        temporary = self._scratch / f"{first}-{last}"
        temporary.mkdir(parents=True, exist_ok=True)
        os.environ.update(
            RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(self.world), LOCAL_WORLD_SIZE=str(self.world),
            MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), TMPDIR=str(temporary),
        )  # fmt: skip
        tempfile.tempdir = None
        os.chdir(self._checkout)
        settings = self._scratch / "pytest.ini"
        settings.write_text("[pytest]\n")
        words = [
            str(UNIT_TESTS / self._file), "-c", str(settings), "--rootdir", str(self._checkout),
            "--basetemp", str(temporary / f"rank{rank}"), "-m", "not flaky_in_dev",
            "-o", f"faulthandler_timeout={TEST_LIMIT - 10}",
            "-q", "-s", "-p", "no:cacheprovider", "-p", "no:xdist", "-p", "no:timeout",
        ]  # fmt: skip
        rank_plugin = plugin.RankPlugin(self._checkout, rank, self._progress, self._records[rank], slice(first, last))
        return int(pytest.main(words, plugins=[rank_plugin]))

    def _read(self) -> dict[str, Result]:
        """The records of all ranks, joined."""
        results: dict[str, Result] = {}
        for path in self._records:
            latest: dict[str, dict[str, Any]] = {}
            for record in _records(path):
                for test in record.get("collected", ()):
                    results.setdefault(test, Result("not run"))
                if "test" in record:
                    latest[record["test"]] = record
            for test, record in latest.items():
                result = results.setdefault(test, Result("not run"))
                result.outcome = max(result.outcome, record["outcome"], key=_ORDER.index)
                result.errors += record["errors"]
        return results

    def _write_end(self, why: str) -> None:
        """Records for the test that ran last that it did not end."""
        with self._records[0].open("a", encoding="utf-8") as records:
            began = [record["began"] for record in _records(self._records[0]) if "began" in record]
            test = began[-1] if began else self._file
            error = {"rank": 0, "time": 0.0, "error": why, "frames": [], "text": ""}
            records.write(json.dumps({"test": test, "outcome": "failed", "errors": [error]}) + "\n")


FAILED_TO_START = 70
_ORDER = ("not run", "skipped", "passed", "failed")


def _records(path: Path) -> list[dict[str, Any]]:
    """The whole lines of a rank's file."""
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    return [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]


COLUMNS = ("passed", NEEDS, OURS, THEIRS, HANGS, UNEXPLAINED, "skipped", "not run")


def counts(results: dict[str, Result]) -> collections.Counter[str]:
    """Tests by COLUMNS."""
    return collections.Counter(
        result.cause(test)[0] if result.outcome == "failed" else result.outcome for test, result in results.items()
    )


def _line(file: str, results: dict[str, Result], seconds: float, world: int) -> str:
    told = ", ".join(f"{count} {name}" for name, count in counts(results).items())
    return f"{file}: {told or 'no tests'} ({world} process{'es' if world > 1 else ''}, {seconds:.0f} s)"


def report(checkout: Path, results: dict[str, dict[str, Result]]) -> list[str]:
    """The lines of the page: the setting, tests by folder or file, failures by cause, and those without one."""
    columns = " | ".join(COLUMNS)
    lines = [*setting(checkout), "", f"| tests | {columns} |", "|---|" + "---:|" * len(COLUMNS)]
    folders: dict[str, collections.Counter[str]] = {}
    for file, tests in results.items():
        folder = f"{file.split(os.sep)[0]}/" if os.sep in file else file
        folders.setdefault(folder, collections.Counter()).update(counts(tests))
    total = sum(folders.values(), collections.Counter())
    for name, count in [*((f"`{name}`", count) for name, count in folders.items()), ("all", total)]:
        lines.append(f"| {name} | " + " | ".join(str(count[column] or "") for column in COLUMNS) + " |")
    failures = [
        (*result.cause(test), test)
        for tests in results.values()
        for test, result in tests.items()
        if result.outcome == "failed"
    ]
    causes = collections.Counter((kind, cause) for kind, cause, _ in failures if kind != UNEXPLAINED)
    if causes:
        lines += ["", "| failed | cause | tests |", "|---|---|---:|"]
        lines += [f"| {kind} | {cause} | {count} |" for (kind, cause), count in sorted(causes.items())]
    unexplained = [(test, cause) for kind, cause, test in failures if kind == UNEXPLAINED]
    if unexplained:
        lines += ["", "Not explained:", ""]
        lines += [f"- `{test.removeprefix(f'{UNIT_TESTS}/')}`: {cause}" for test, cause in sorted(unexplained)]
    return lines


def setting(checkout: Path) -> list[str]:
    """What was run, where and when."""
    core = Path(sys.modules["megatron.core"].__file__ or "").parent
    info = (checkout / "megatron/core/package_info.py").read_text(encoding="utf-8")
    numbers = re.findall(r"^(?:MAJOR|MINOR|PATCH) = (\d+)", info, re.MULTILINE)
    theirs = [path.relative_to(checkout / "megatron/core") for path in (checkout / "megatron/core").rglob("*.py")]
    other = sorted(str(path) for path in theirs if not _is_same(checkout / "megatron/core" / path, core / path))
    model = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text()) if sys.platform == "linux" else None
    return [
        f"megatron-core {sys.modules['megatron.core'].__version__}, tests of {'.'.join(numbers)}"
        + (f"; {len(other)} source files differ: {', '.join(other)}" if other else "; the sources are equal"),
        f"Python {platform.python_version()}, torch {torch.__version__}, "
        f"{model[1] if model else platform.processor()}, {os.cpu_count()} cores, {datetime.date.today()}",
    ]


def _is_same(path: Path, other: Path) -> bool:
    return other.exists() and filecmp.cmp(path, other, shallow=False)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("checkout", type=Path, help="a checkout of Megatron-LM at the tag of the installed release")
    parser.add_argument("paths", nargs="*", help="files and folders of tests/unit_tests (default: what is used here)")
    parser.add_argument("--markdown", type=Path, help="also write the tables to this file")
    parser.add_argument("--logs", type=Path, help="keep the output and the records of each file in this folder")
    parser.add_argument("--time-limit", type=float, default=900, help="seconds for each file (default: 900)")
    return parser


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except Exception as error:
        sys.exit(report_error("megatron_core_tests", error))
