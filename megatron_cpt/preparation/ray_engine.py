"""`prepare --engine ray`: shards and parts as tasks of a Ray cluster, whose machines share a file system.

A task is what a task of a Slurm array is: `prepare_shard`, then `join_alone`. Ray places the tasks, and runs those of a
lost machine again elsewhere. What a lost task had finished is in PREFIX.pieces and is used again.
"""

import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tqdm import tqdm

from megatron_cpt.config.errors import BadInput, Fault, WorkerDied
from megatron_cpt.preparation.contamination import EvaluationSet
from megatron_cpt.preparation.describe_job import described_job
from megatron_cpt.preparation.existing import whole_result
from megatron_cpt.preparation.input_kinds import STANDARD_INPUT
from megatron_cpt.preparation.job import Job, PrepareSettings, clear, forget, owned
from megatron_cpt.preparation.join import Joined
from megatron_cpt.preparation.pieces import spans
from megatron_cpt.preparation.prepare import Prepared, Shard, ShardDone, begun, join_alone, prepare_shard
from megatron_cpt.preparation.remote_file import is_remote

_SHARDS_PER_CPU = 4
"""So that a lost machine, or a slow one, costs little of the whole."""


def prepare_on_ray(
    inputs: Sequence[str],
    tokenizer: str | Path,
    output: str | Path,
    settings: PrepareSettings | None = None,
    *,
    evaluation: Sequence[EvaluationSet] = (),
    address: str | None = None,
    progress: bool = False,
    fast: bool = True,
    overwrite: bool = False,
) -> Prepared:
    """Does what `prepare` does, on a cluster: the same files, byte for byte.

    Args:
        inputs, tokenizer, output: on a file system that all machines have under the same names.
        address: of the cluster, as `ray.init` takes it. None: $RAY_ADDRESS, a cluster of this machine, or a new one.
    Raises:
        BadInput: as `prepare` does, also for standard input, and where Ray is not installed or there is no cluster.
        WorkerDied: a task was lost more often than Ray runs it again.
    """
    if str(STANDARD_INPUT) in inputs:
        raise BadInput(Fault("-", "cannot be shared among machines.", "Give files, or leave --engine ray out."))
    # Tasks run in folders of their own.
    here = [path if is_remote(path) else os.path.abspath(path) for path in inputs]
    where, prefix = Path(tokenizer).absolute(), Path(output).absolute()
    job, _ = described_job(here, where, prefix, settings or PrepareSettings(), evaluation)
    there = whole_result(job)
    if there is not None:
        forget(job)
        return Prepared(tuple(there), reused=True)
    with _cluster(address) as ray:
        with owned(prefix):
            there = begun(job, overwrite)
            if there is not None:
                return Prepared(tuple(there), reused=True)
        # From here on as tasks of an array, which share it.
        with owned(prefix, shared=True):
            _tokenize(ray, job, (here, where, prefix, settings, fast), evaluation, progress)
            joined = _join(ray, job, overwrite, progress)
    with owned(prefix):
        clear(prefix)
    return Prepared(tuple(joined), reused=False)


@contextmanager
def _cluster(address: str | None) -> Iterator[Any]:
    """The module ray, connected for the block; a connection that is there is used and stays."""
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
    try:
        ray.init(address=address, log_to_driver=False, logging_level=logging.WARNING)
    except (ConnectionError, ValueError) as error:
        remedy = "Give the address that `ray start --head` printed, HOST:6379."
        raise BadInput(Fault(f"--address {address}", f"has no Ray cluster ({error}).", remedy)) from error
    try:
        yield ray
    finally:
        ray.shutdown()


def _tokenize(ray: Any, job: Job, call: tuple[Any, ...], evaluation: Sequence[EvaluationSet], progress: bool) -> None:
    """Completes all pieces. `call` are the first arguments of `_shard`."""
    found = spans(job.inputs, job.piece_size, job.settings.text_key)
    cpus = int(ray.cluster_resources().get("CPU", 1))
    shards = max(1, min(len(found), _SHARDS_PER_CPU * cpus))
    # A process for each task: the tokenizer libraries keep what they have seen.
    task = ray.remote(num_cpus=1, max_calls=1)(_shard)
    sets = ray.put(evaluation)
    tasks = [task.remote(*call, Shard(number, shards), sets) for number in range(1, shards + 1)]
    _results(ray, tasks, f"{job.output.name}: shards", progress)


def _shard(
    inputs: Sequence[str],
    tokenizer: Path,
    output: Path,
    settings: PrepareSettings | None,
    fast: bool,
    shard: Shard,
    evaluation: Sequence[EvaluationSet],
) -> ShardDone:
    # In this process: Ray's have threads, which do not survive a fork.
    return prepare_shard(inputs, tokenizer, output, settings, shard, evaluation=evaluation, workers=0, fast=fast)


def _join(ray: Any, job: Job, overwrite: bool, progress: bool) -> list[Joined]:
    task = ray.remote(num_cpus=1, max_calls=1)(join_alone)
    # The first decides, and others would only wait for it.
    first = _results(ray, [task.remote(job, 1, overwrite)], f"{job.output.name}: part 1", progress)
    tasks = [task.remote(job, number, overwrite) for number in range(2, job.settings.parts + 1)]
    return first + _results(ray, tasks, f"{job.output.name}: parts", progress)


def _results(ray: Any, tasks: Sequence[Any], name: str, progress: bool) -> list[Any]:
    """What the tasks return, in their order. What one of them raises is raised once it is known."""
    waiting = list(tasks)
    with tqdm(total=len(tasks), unit="task", disable=not progress, desc=name) as bar:
        while waiting:
            done, waiting = ray.wait(waiting, num_returns=1)
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
