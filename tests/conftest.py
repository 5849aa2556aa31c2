"""Fixtures that several packages share."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import settings

from megatron_cpt.runs.processes import children, end_all
from tests.evaluate.harness_folder import write_harness_tasks
from tests.ranks import Ranks
from tests.train.runs import descendants
from tests.workshop import Workshop, build

# Texts, tokenizers trained on them, and the way to shared data; a Ray cluster.
pytest_plugins = ["tests.texts", "tests.ray_cluster"]

# No test is timed: a busy machine is no failure. The same examples every time: a red main can be run again.
settings.register_profile("project", deadline=None, derandomize=True)
settings.load_profile("project")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skips tests that need a GPU where there is none, and says so."""
    if torch.cuda.is_available():
        return
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device; this machine has none"))


def pytest_runtest_teardown() -> None:
    """Ends the commands that a test has started and left, as one that fails or meets its time limit may do."""
    for child in children(os.getpid()):
        if b"megatron_cpt.commands.dispatch" in Path(f"/proc/{child}/cmdline").read_bytes():
            end_all([child, *descendants(child)])


@pytest.fixture(scope="session")
def one_rank() -> Iterator[Ranks]:
    """A live world of one process."""
    yield from live(1)


@pytest.fixture(scope="session")
def two_ranks() -> Iterator[Ranks]:
    """A live world of two processes."""
    yield from live(2)


@pytest.fixture(scope="session")
def three_ranks() -> Iterator[Ranks]:
    """A live world of three processes."""
    yield from live(3)


@pytest.fixture(scope="session")
def four_ranks() -> Iterator[Ranks]:
    """A live world of four processes."""
    yield from live(4)


def live(size: int) -> Iterator[Ranks]:
    ranks = Ranks(size)
    yield ranks
    ranks.stop()


@pytest.fixture(scope="session")
def workshop(tmp_path_factory: pytest.TempPathFactory) -> Workshop:
    """A tokenizer, a model and two corpora, for whole runs."""
    return build(tmp_path_factory.mktemp("workshop"))


@pytest.fixture(scope="module")
def harness_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three tasks of lm-evaluation-harness: choices, goes_on and whole."""
    folder = tmp_path_factory.mktemp("harness")
    write_harness_tasks(folder)
    return folder
