"""A Ray cluster, whose machines share a file system, and the results of tasks on it (`--engine ray`)."""

import logging
import os
import socket
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from tqdm import tqdm

from megatron_cpt.config.errors import BadInput, Fault, WorkerDied

_KNOCK_SECONDS = 10
_LOOK_SECONDS = 5.0
"""Between two looks at whether the cluster has machines that run tasks."""
PATIENCE_SECONDS = 60.0
"""A cluster may be without any for so long: one that grows by itself has none at first."""


@contextmanager
def ray_cluster(address: str | None) -> Iterator[Any]:
    """The module ray, connected for the block; a connection that is there is used and stays.

    Args:
        address: of the cluster, as `ray.init` takes it. None: $RAY_ADDRESS, a cluster of this machine, or a new one.
    Raises:
        BadInput: Ray is not installed, or there is no cluster.
    """
    try:
        # An optional library.
        import ray  # noqa: PLC0415
    except ImportError as error:
        raise BadInput(
            Fault("--engine ray", "needs Ray, not installed.", "pip install 'megatron-cpt[ray]'.")
        ) from error
    if ray.is_initialized():
        yield ray
        return
    address = address or os.environ.get("RAY_ADDRESS")
    try:
        _knock(address or "")
        ray.init(address=address, log_to_driver=False, logging_level=logging.WARNING)
    except (OSError, OverflowError, ValueError) as error:
        remedy = "Give the address that `ray start --head` printed, HOST:6379."
        raise BadInput(Fault(f"--address {address}", f"has no Ray cluster ({error}).", remedy)) from error
    try:
        yield ray
    finally:
        ray.shutdown()


def _knock(address: str) -> None:
    """Raises OSError or OverflowError where nobody listens at HOST:PORT: Ray itself would try again for minutes."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if port.isdecimal():
        socket.create_connection((host.strip("[]"), int(port)), _KNOCK_SECONDS).close()


def task_results(ray: Any, tasks: Sequence[Any], name: str, progress: bool) -> list[Any]:
    """What the tasks return, in their order. What one of them raises is raised once it is known.

    Raises:
        WorkerDied: a task was lost more often than Ray runs it again, or no machine is left that could.
    """
    waiting = list(tasks)
    worked = time.monotonic()
    with tqdm(total=len(tasks), unit="task", disable=not progress, desc=name) as bar:
        while waiting:
            done, waiting = ray.wait(waiting, num_returns=1, timeout=_LOOK_SECONDS)
            if done or ray.cluster_resources().get("CPU"):
                worked = time.monotonic()
            elif time.monotonic() - worked > PATIENCE_SECONDS:
                remedy = "Start machines (`ray start --address HOST:PORT`), and give the same command: it goes on."
                raise WorkerDied(f"the Ray cluster has had no CPU for {PATIENCE_SECONDS:.0f} s. {remedy}")
            try:
                ray.get(done)
            except ray.exceptions.RayTaskError as error:
                raise error.cause from None
            except ray.exceptions.RayError as error:
                kept = "What other tasks finished is kept: the same command goes on from there."
                raise WorkerDied(f"a task of Ray was lost: {error} {kept}") from error
            bar.update(len(done))
    results: list[Any] = ray.get(list(tasks))
    return results
