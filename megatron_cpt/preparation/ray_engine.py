"""`prepare --engine ray`: shards and parts as tasks of a Ray cluster, whose machines share a file system.

A task is what a task of a Slurm array is: `prepare_shard`, then `join_alone`. Ray places the tasks, and runs those of a
lost machine again elsewhere. What a lost task had finished is in PREFIX.pieces and is used again.
"""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from megatron_cpt.config.errors import BadInput, Fault
from megatron_cpt.preparation.contamination import EvaluationSet
from megatron_cpt.preparation.describe_job import described_job
from megatron_cpt.preparation.existing import whole_result
from megatron_cpt.preparation.input_kinds import STANDARD_INPUT
from megatron_cpt.preparation.job import Job, PrepareSettings, clear, forget, owned
from megatron_cpt.preparation.join import Joined
from megatron_cpt.preparation.pieces import spans
from megatron_cpt.preparation.prepare import Prepared, Shard, ShardDone, begun, join_alone, prepare_shard
from megatron_cpt.preparation.remote_file import absolute_path
from megatron_cpt.runs.ray_tasks import ray_cluster, task_results

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
    here = [absolute_path(path) for path in inputs]
    where, prefix = Path(tokenizer).absolute(), Path(output).absolute()
    job, _ = described_job(here, where, prefix, settings or PrepareSettings(), evaluation)
    there = whole_result(job)
    if there is not None:
        forget(job)
        return Prepared(tuple(there), reused=True)
    with ray_cluster(address) as ray:
        with owned(prefix):
            there = begun(job, overwrite)
            if there is not None:
                return Prepared(tuple(there), reused=True)
        # From here on as tasks of an array, which share it.
        with owned(prefix, shared=True):
            work = partial(
                prepare_shard,
                here,
                where,
                prefix,
                settings,
                evaluation=evaluation,
                workers=0,  # Ray's processes have threads, which do not survive a fork.
                fast=fast,
            )
            _tokenize(ray, job, work, progress)
            joined = _join(ray, job, overwrite, progress)
    with owned(prefix):
        clear(prefix)
    return Prepared(tuple(joined), reused=False)


def _tokenize(ray: Any, job: Job, work: Callable[[Shard], ShardDone], progress: bool) -> None:
    """Completes all pieces."""
    found = spans(job.inputs, job.piece_size, job.settings.text_key)
    cpus = int(ray.cluster_resources().get("CPU", 1))
    shards = max(1, min(len(found), _SHARDS_PER_CPU * cpus))
    # A process for each task: the tokenizer libraries keep what they have seen.
    task = ray.remote(num_cpus=1, max_calls=1)(_shard)
    shared = ray.put(work)  # it names all inputs
    tasks = [task.remote(shared, Shard(number, shards)) for number in range(1, shards + 1)]
    task_results(ray, tasks, f"{job.output.name}: shards", progress)


def _shard(work: Callable[[Shard], ShardDone], shard: Shard) -> ShardDone:
    return work(shard)


def _join(ray: Any, job: Job, overwrite: bool, progress: bool) -> list[Joined]:
    task = ray.remote(num_cpus=1, max_calls=1)(join_alone)
    shared = ray.put(job)  # it names all inputs
    # The first decides, and others would only wait for it.
    first = task_results(ray, [task.remote(shared, 1, overwrite)], f"{job.output.name}: part 1", progress)
    tasks = [task.remote(shared, number, overwrite) for number in range(2, job.settings.parts + 1)]
    return first + task_results(ray, tasks, f"{job.output.name}: parts", progress)
