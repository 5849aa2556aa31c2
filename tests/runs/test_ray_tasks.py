"""Tasks on a Ray cluster that has no machine for them."""

from typing import Any

import pytest

from megatron_cpt.config.errors import WorkerDied
from megatron_cpt.runs import ray_tasks
from tests.ray_cluster import needs_ray


def one() -> int:
    return 1


@needs_ray
def test_a_cluster_without_machines_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    from ray.cluster_utils import Cluster  # noqa: PLC0415

    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    monkeypatch.setattr(ray_tasks, "PATIENCE_SECONDS", 1.0)
    nodes: Any = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    try:
        with (
            ray_tasks.ray_cluster(nodes.address) as ray,
            pytest.raises(WorkerDied, match=r"the Ray cluster has had no CPU for 1 s\. Start machines"),
        ):
            ray_tasks.task_results(ray, [ray.remote(num_cpus=1)(one).remote()], "tasks", progress=False)
    finally:
        nodes.shutdown()
