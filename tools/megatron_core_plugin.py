"""One rank of Megatron-Core's unit tests on a CPU: what their tests see of torch, and a record of each test.

`megatron_core_tests.py` imports this file, prepares its process once, and forks the ranks from it. Megatron-Core itself
runs on megatron_cpt's CPU platform and on nothing else. The tests and `megatron.training`, both from the checkout, name
CUDA as well: as they are imported, each is given a `torch` in which these names work on the CPU, by an `__import__` of
its own. torch, and megatron.core, do not see that one.
"""

import builtins
import functools
import gc
import importlib
import importlib.util
import json
import os
import sys
import time
import types
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from packaging.version import Version

from megatron_cpt.parallel import cpu_platform, groups

RESTART = 64
"""Exit status of a rank that disagrees with the others: the next test needs new processes."""
COLLECTIVE_LIMIT = timedelta(seconds=120)
PATIENCE = 5
"""Seconds that a rank whose test failed waits for the others."""

_FACTORIES = ["eye", "full_like", "linspace", "rand_like", "randint", "randn_like", "randperm"]
"""Those that the tests call, beside those of the CPU platform."""


def prepare(checkout: Path) -> None:
    """Imports once what the ranks share, and puts the checkout on the path: megatron.training and the tests."""
    torch.set_num_threads(1)
    importlib.import_module("torch._dynamo")  # their tests import it, at a cost of seconds
    importlib.import_module("megatron.core.models.gpt")
    importlib.import_module("megatron.core.dist_checkpointing")
    if importlib.util.find_spec("transformer_engine") is None:
        # 0.16.1 compares None with the version that every one of its tests asks for; later releases take this one.
        importlib.import_module("megatron.core.utils")._te_version = Version("0.0.0")
    # A wheel holds the compiled functions, and no Makefile.
    importlib.import_module("megatron.core.datasets.utils").compile_helpers = cpu_platform.nothing()
    if importlib.util.find_spec("triton") is None:
        with _triton_without_kernels():
            importlib.import_module("megatron.core.transformer.custom_layers.batch_invariant_kernels")
    sys.path.insert(0, str(checkout))  # megatron.core has been imported: it stays the installed one
    sys.meta_path.insert(0, CheckoutFinder(checkout))
    sys.modules[_DATASETS.__name__] = _DATASETS
    if (checkout / "megatron/training").is_dir():
        importlib.import_module("megatron.training.training")
    sys.meta_path = [finder for finder in sys.meta_path if not isinstance(finder, CheckoutFinder)]
    gc.freeze()  # no rank looks through it again


@contextmanager
def _triton_without_kernels() -> Iterator[None]:
    """Lets the one file be imported that imports triton unasked; those that ask whether it is there hear no."""

    def decorate(*rest: Any, **options: Any) -> Any:
        return rest[0] if rest and callable(rest[0]) else lambda kernel: kernel

    names = {"triton": types.ModuleType("triton"), "triton.language": types.ModuleType("triton.language")}
    names["triton"].__dict__.update(jit=decorate, language=names["triton.language"])
    names["triton.language"].__dict__.update(constexpr=int)
    sys.modules.update(names)
    try:
        yield
    finally:
        for name in names:
            del sys.modules[name]


def _no_download(**options: Any) -> None:
    raise RuntimeError("the data sets of Megatron-LM's own test machines are not downloaded")


_DATASETS = types.ModuleType("tests.test_utils.python_scripts.download_unit_tests_dataset")
_DATASETS.download_and_extract_asset = _no_download  # type: ignore[attr-defined]


class CheckoutFinder:
    """Import finder that gives each module of the checkout a `torch` whose CUDA names work on the CPU."""

    def __init__(self, checkout: Path) -> None:
        self._checkout = checkout

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: types.ModuleType | None = None
    ) -> ModuleSpec | None:
        """Finds what the other finders find."""
        if name.startswith("megatron.core."):
            return None
        found = (finder.find_spec(name, path, target) for finder in sys.meta_path if finder is not self)
        spec = next((spec for spec in found if spec is not None), None)
        if spec is not None and spec.loader is not None and spec.origin is not None and self._holds(spec.origin):
            spec.loader = CheckoutLoader(spec.loader)  # type: ignore[assignment]
        return spec

    def _holds(self, origin: str) -> bool:
        return Path(origin).is_relative_to(self._checkout)


class CheckoutLoader:
    """Another loader, with a name put into the module before it is executed."""

    def __init__(self, loader: Any) -> None:
        self._loader = loader

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loader, name)

    def exec_module(self, module: types.ModuleType) -> None:
        module.__dict__["__builtins__"] = {**vars(builtins), "__import__": _import}
        self._loader.exec_module(module)


def _import(name: str, *rest: Any, **options: Any) -> Any:
    """`import` in modules of the checkout."""
    found = builtins.__import__(name, *rest, **options)
    if found is torch:
        return torch_of_tests()
    return torch_of_tests().cuda if found is torch.cuda else found


@functools.cache
def torch_of_tests() -> Any:
    """The CPU platform's `torch`, with the CUDA names of the tests beside those of Megatron-Core."""
    made = types.ModuleType("torch")
    made.__dict__.update(importlib.import_module("megatron.core.utils").torch.__dict__)
    for name in _FACTORIES:
        setattr(made, name, cpu_platform.on_cpu(getattr(torch, name)))
    cuda = types.ModuleType("torch.cuda")
    cuda.__dict__.update(made.cuda.__dict__)
    cuda.__dict__.update(
        is_available=lambda: True,
        device_count=lambda: int(os.environ.get("WORLD_SIZE", "1")),
        get_device_capability=lambda *rest: (0, 0),
        manual_seed_all=cuda.manual_seed,
        reset_peak_memory_stats=cpu_platform.nothing(),
    )
    made.cuda = cuda  # type: ignore[attr-defined]
    return made


def _replace_for_tests(checkout: Path) -> None:
    """gloo where NCCL is named, and the CPU where a file of the checkout calls `.to` with the name of CUDA."""

    def names_cuda(value: Any) -> bool:
        return isinstance(value, str | torch.device) and str(value).startswith("cuda")

    def to_cpu(method: Callable[..., Any]) -> Callable[..., Any]:
        def to(self: Any, *rest: Any, **options: Any) -> Any:
            if sys._getframe(1).f_code.co_filename.startswith(str(checkout)):
                rest = tuple("cpu" if names_cuda(value) else value for value in rest)
                options = {name: "cpu" if names_cuda(value) else value for name, value in options.items()}
            return method(self, *rest, **options)

        return to

    def on_gloo(method: Callable[..., Any]) -> Callable[..., Any]:
        def make(*rest: Any, **options: Any) -> Any:
            rest = tuple("gloo" if isinstance(value, str) and value == "nccl" else value for value in rest)
            return method(*rest, **options | ({"backend": "gloo"} if options.get("backend") == "nccl" else {}))

        return make

    plain_init = dist.init_process_group

    def init_process_group(*rest: Any, **options: Any) -> None:
        plain_init(*rest, **{**options, "timeout": COLLECTIVE_LIMIT, "device_id": None})

    plain_adamw = torch.optim.AdamW.__init__

    def init_adamw(self: Any, params: Any, lr: float | None = 1e-3, *rest: Any, **options: Any) -> None:
        # Their checkpoint tests give none, which Transformer Engine's and apex's Adam take; they do no step.
        plain_adamw(self, params, 0.0 if lr is None else lr, *rest, **options)

    torch.optim.AdamW.__init__ = init_adamw  # type: ignore[method-assign]
    torch.Tensor.to = to_cpu(torch.Tensor.to)  # type: ignore[method-assign]
    torch.nn.Module.to = to_cpu(torch.nn.Module.to)  # type: ignore[method-assign]
    groups.share_devices()
    dist.init_process_group = on_gloo(init_process_group)
    dist.new_group = dist.distributed_c10d.new_group = on_gloo(dist.new_group)


class Progress:
    """What the ranks of one file know of each other, in memory that they share: made before they are forked."""

    def __init__(self, world: int, array: Callable[[str, int], Any]) -> None:
        self.world = world
        self.done = array("q", world)
        """Tests that each rank has finished, those of earlier processes included."""
        self.outcomes = array("q", 2 * world)
        """Of its last test and of the one before, as a rank is at most one ahead: 0, or 1 + its groups if it failed."""

    def start(self, first: int) -> None:
        """Before new processes, which begin with a test."""
        self.done[:] = [first] * self.world
        self.outcomes[:] = [0] * 2 * self.world

    def meet(self, rank: int, failed: bool) -> bool:
        """Waits until every rank has finished this test; whether they can go on together.

        After a failure they can where all have failed and have made as many groups: torch names groups by their number.
        Ranks that another one left in the midst of a collective do not come: it waits for PATIENCE.
        """
        slot = self.done[rank] % 2 * self.world
        self.outcomes[slot + rank] = 1 + dist.distributed_c10d._world.group_count if failed else 0
        self.done[rank] += 1
        end = time.monotonic() + PATIENCE
        while min(self.done) < self.done[rank]:
            if failed and time.monotonic() > end:
                return False
            time.sleep(0.01)
        return len(set(self.outcomes[slot : slot + self.world])) == 1


class RankPlugin:
    """pytest plugin of one rank: runs a slice of the tests, writes what became of each, and waits for the others."""

    def __init__(self, checkout: Path, rank: int, progress: Progress, records: Path, chosen: slice) -> None:
        self._checkout, self._rank, self._progress, self._chosen = checkout, rank, progress, chosen
        self._records = records.open("a", encoding="utf-8")
        self._outcome: dict[str, Any] = {}

    @pytest.hookimpl(tryfirst=True)
    def pytest_load_initial_conftests(self) -> None:
        # pytest has put its own finder first by now.
        sys.meta_path.insert(0, CheckoutFinder(self._checkout))
        _replace_for_tests(self._checkout)

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, config: pytest.Config, items: list[pytest.Item]) -> None:
        self._write({"collected": [item.nodeid for item in items]})
        chosen, others = items[self._chosen], list(items)
        del others[self._chosen]
        config.hook.pytest_deselected(items=others)
        items[:] = chosen

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.skipped:
            self._write({"test": report.nodeid, "outcome": "skipped", "errors": []})

    def pytest_exception_interact(self, node: Any, call: pytest.CallInfo[Any], report: Any) -> None:
        assert call.excinfo is not None
        frames = [str(entry.path) for entry in call.excinfo.traceback]
        message = str(call.excinfo.value).strip() or report.longreprtext.strip().splitlines()[-1]
        error = {
            "rank": self._rank,
            "time": time.time(),
            "error": f"{call.excinfo.typename}: {message}",
            "frames": [self._shortened(frame) for frame in frames][-12:],
            "text": report.longreprtext[-6000:],
        }
        if isinstance(report, pytest.CollectReport):
            self._write({"test": report.nodeid, "outcome": "failed", "errors": [error]})
        else:
            self._outcome["errors"].append(error)

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        self._outcome = {"test": nodeid, "outcome": "passed", "errors": []}
        self._write({"began": nodeid})

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed or (report.skipped and self._outcome["outcome"] == "passed"):
            self._outcome["outcome"] = report.outcome

    def pytest_runtest_logfinish(self) -> None:
        self._write(self._outcome)
        if not self._progress.meet(self._rank, self._outcome["outcome"] == "failed"):
            os._exit(RESTART)

    def _shortened(self, frame: str) -> str:
        """A path from `megatron`, `tests` or the package on."""
        for root in sorted({str(self._checkout), *map(os.path.abspath, sys.path)}, key=len, reverse=True):
            if frame.startswith(f"{root}{os.sep}"):
                return frame[len(root) + 1 :]
        return frame

    def _write(self, record: dict[str, Any]) -> None:
        self._records.write(json.dumps(record) + "\n")
        self._records.flush()
