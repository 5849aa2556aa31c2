"""A Ray cluster for tests, where Ray is installed."""

import importlib.util
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

HAS_RAY = importlib.util.find_spec("ray") is not None
needs_ray = pytest.mark.skipif(not HAS_RAY, reason="ray is not installed: pip install 'megatron-cpt[ray]'")


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """A head that runs no task, and two nodes of one task each, all on this machine."""
    from ray.cluster_utils import Cluster  # noqa: PLC0415

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        nodes = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
        for _ in range(2):
            nodes.add_node(num_cpus=1)
        yield nodes
        nodes.shutdown()


@contextmanager
def losing_a_node(cluster: Any, finished: Callable[[], int]) -> Iterator[list[int]]:
    """Kills a node during the block, once something is finished; the list then has what was finished at that time."""
    lost: list[int] = []

    def lose() -> None:
        deadline = time.monotonic() + 600
        while not finished() and time.monotonic() < deadline:
            time.sleep(0.02)
        # It has a task: each node runs one, and most are not done yet.
        cluster.remove_node(sorted(cluster.worker_nodes, key=lambda node: node.unique_id)[0], allow_graceful=False)
        lost.append(finished())

    killer = threading.Thread(target=lose)
    killer.start()
    yield lost
    killer.join()
