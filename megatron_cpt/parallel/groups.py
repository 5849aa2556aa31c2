"""The ranks of a run: process groups, collectives and random states. The one file that names parallel_state.

All gloo groups of a process share their devices: each group would otherwise have a thread that wakes a hundred times a
second. On a CPU, memory that a step frees is kept for the next step.
"""

import ctypes
import math
import os
import random
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from queue import Empty, SimpleQueue
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from megatron.core import parallel_state, tensor_parallel
from megatron.core.models.common.embeddings.rotary_pos_embedding import RotaryEmbedding
from torch.distributed import ProcessGroupGloo, Store

from megatron_cpt.config.errors import RankFailed, RankGone
from megatron_cpt.config.schema import ParallelSettings
from megatron_cpt.parallel.patches import replace_name


def device() -> torch.device:
    """The device of this rank: its own GPU, or the CPU."""
    if torch.cuda.is_available():
        return torch.device("cuda", own_gpu(int(os.environ.get("LOCAL_RANK", "0")), torch.cuda.device_count()))
    return torch.device("cpu")


def own_gpu(local_rank: int, visible: int) -> int:
    """The GPU of a process among those that it sees: the one there is, where each is shown its own, as Slurm can."""
    return local_rank if visible > 1 else 0


TIMEOUT = timedelta(minutes=10)
"""How long ranks wait for each other where nothing else is said."""


def init_process_group(timeout: timedelta = TIMEOUT, store: dist.Store | None = None) -> None:
    """Starts the process group from torchrun's environment (a world of one without it): NCCL on GPUs, gloo on CPUs.

    A silent rank ends the others after the timeout. `store` is where the ranks meet, if not where torchrun says.
    """
    if dist.is_initialized():
        return
    for name, value in {"RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1"}.items():
        os.environ.setdefault(name, value)
    place: dict[str, Any] = {"timeout": timeout}
    if store is not None:
        store.set_timeout(timeout)
        place |= {"store": store, "rank": int(os.environ["RANK"]), "world_size": int(os.environ["WORLD_SIZE"])}
    elif "MASTER_PORT" not in os.environ:
        place |= {"store": dist.HashStore(), "rank": 0, "world_size": 1}
    if device().type == "cuda":
        # Not as `device_id`: with that, each of Megatron-Core's groups would be an ncclCommSplit of its own at once, of
        # which all ranks together make thousands. Without it NCCL makes a communicator at a group's first collective,
        # on the current GPU.
        torch.cuda.set_device(device())
        dist.init_process_group("nccl", **place)
    else:
        share_devices()
        dist.init_process_group("gloo", **place)


def init_model_parallel(parallel: ParallelSettings, timeout: timedelta = TIMEOUT) -> None:
    """Makes Megatron-Core's groups for a layout; an earlier layout of this process is given up.

    Theirs have a timeout of their own, 30 minutes unless it is given.
    """
    if parallel_state.model_parallel_is_initialized():
        parallel_state.destroy_model_parallel()
    parallel_state.initialize_model_parallel(
        tensor_model_parallel_size=parallel.tensor,
        pipeline_model_parallel_size=parallel.pipeline,
        virtual_pipeline_model_parallel_size=parallel.virtual_pipeline if parallel.virtual_pipeline > 1 else None,
        context_parallel_size=parallel.context,
        expert_model_parallel_size=parallel.expert,
        distributed_timeout_minutes=math.ceil(timeout / timedelta(minutes=1)),
    )


def destroy() -> None:
    """Gives the groups back, and with them their threads."""
    # A cache of results on the class keeps the embeddings that gave them, and these a group each.
    RotaryEmbedding.forward.cache_clear()
    if parallel_state.model_parallel_is_initialized():
        parallel_state.destroy_model_parallel()
    if dist.is_initialized():
        dist.destroy_process_group()


def rank() -> int:
    """Rank in the world; rank 0 writes the run folder."""
    return dist.get_rank()


STORE_PATIENCE = 5.0
"""Seconds until the store of the ranks counts as out of reach: it may be in a process that is stopped."""


class StoreConnection:
    """The store of the ranks, for those who would not wait for ever.

    A call that has no answer in time raises RuntimeError, and so do further ones until it has. torch's own timeout ends
    no call to a process that is stopped: each is made in a thread, which is left behind.
    """

    def __init__(self, seconds: float, own: bool) -> None:
        """Raises RuntimeError or ValueError where there is none.

        Args:
            seconds: that an answer may take.
            own: on a connection of its own, for a thread beside the one that waits for other ranks.
        """
        store: Any = dist.distributed_c10d._get_default_store()
        self._store, self._seconds = store.clone() if own else store, seconds
        if own:
            self._store.set_timeout(timedelta(seconds=seconds))
        self._asking: threading.Thread | None = None

    def get(self, key: str) -> bytes:
        """The value of a key, once it has one."""
        value: bytes = self._answer(self._seconds, self._store.get, key)
        return value

    def set(self, key: str, value: str | bytes) -> None:
        """Gives a key a value."""
        self._answer(self._seconds, self._store.set, key, value)

    def add(self, key: str, number: int) -> int:
        """Adds to a number, 0 at first, and returns the sum."""
        return int(self._answer(self._seconds, self._store.add, key, number))

    def check(self, keys: list[str]) -> bool:
        """Whether all keys have values."""
        return bool(self._answer(self._seconds, self._store.check, keys))

    def wait(self, keys: list[str], seconds: float) -> None:
        """Returns when all keys have values."""
        self._answer(seconds + self._seconds, self._store.wait, keys, timedelta(seconds=seconds))

    def _answer(self, seconds: float, call: Callable[..., Any], *arguments: Any) -> Any:
        if self._asking is not None and self._asking.is_alive():
            raise RuntimeError("the last call has no answer yet")
        answers: SimpleQueue[tuple[Any, RuntimeError | None]] = SimpleQueue()

        def ask() -> None:
            try:
                answers.put((call(*arguments), None))
            except RuntimeError as error:
                answers.put((None, error))

        self._asking = threading.Thread(target=ask, name="store", daemon=True)
        self._asking.start()
        try:
            value, error = answers.get(timeout=seconds)
        except Empty:
            raise RuntimeError(f"no answer within {seconds:.0f} s") from None
        self._asking.join()
        if error is not None:
            raise error
        return value


def is_first(what: str, store: StoreConnection | None = None) -> bool:
    """Whether this rank asks so before every other rank; of all that ask, one hears yes. No collective.

    Where the ranks' store cannot be reached it is rank 0; with a connection of the caller's that is an error.
    """
    key = f"megatron-cpt/{what}"
    if store is not None:
        return store.add(key, 1) == 1
    try:
        return StoreConnection(STORE_PATIENCE, own=False).add(key, 1) == 1
    except (RuntimeError, ValueError):  # no process group yet, or the store's process is stopped or gone
        return os.environ.get("RANK", "0") == "0"


def world_size() -> int:
    """Ranks in the world."""
    return dist.get_world_size()


def tensor_rank() -> int:
    """Tensor-parallel rank: among those that share each layer."""
    return parallel_state.get_tensor_model_parallel_rank()


def tensor_size() -> int:
    """Tensor-parallel size."""
    return parallel_state.get_tensor_model_parallel_world_size()


def tensor_group() -> dist.ProcessGroup:
    """The tensor-parallel group."""
    return parallel_state.get_tensor_model_parallel_group()


def expert_tensor_rank() -> int:
    """Tensor-parallel rank of experts: among those that share an expert."""
    return parallel_state.get_expert_tensor_parallel_rank()


def expert_tensor_size() -> int:
    """Tensor-parallel size of experts."""
    return parallel_state.get_expert_tensor_parallel_world_size()


def expert_data_rank() -> int:
    """Data-parallel rank of experts: among the replicas of this rank's experts."""
    return parallel_state.get_expert_data_parallel_rank()


def pipeline_rank() -> int:
    """This rank's pipeline stage."""
    return parallel_state.get_pipeline_model_parallel_rank()


def pipeline_size() -> int:
    """Pipeline stages."""
    return parallel_state.get_pipeline_model_parallel_world_size()


def pipeline_group() -> dist.ProcessGroup:
    """The stages of one pipeline."""
    return parallel_state.get_pipeline_model_parallel_group()


def _last_stage_rank() -> int:
    """World rank of this pipeline's last stage, which has the loss."""
    return parallel_state.get_pipeline_model_parallel_last_rank()


def virtual_stages() -> list[int | None]:
    """The model chunks that this rank holds; [None] where pipelines are not interleaved."""
    chunks = parallel_state.get_virtual_pipeline_model_parallel_world_size()
    return [None] if chunks is None else list(range(chunks))


def is_first_stage(chunk: int | None = None) -> bool:
    """Whether this rank, or its model chunk, reads tokens."""
    return parallel_state.is_pipeline_first_stage(ignore_virtual=chunk is None, vp_stage=chunk)


def is_last_stage(chunk: int | None = None) -> bool:
    """Whether this rank, or its model chunk, has the loss."""
    return parallel_state.is_pipeline_last_stage(ignore_virtual=chunk is None, vp_stage=chunk)


def data_rank() -> int:
    """Data-parallel rank: among the replicas, which read different sequences."""
    return parallel_state.get_data_parallel_rank()


def data_size() -> int:
    """Data-parallel size: replicas, each of which may be several ranks that share its sequences."""
    return parallel_state.get_data_parallel_world_size()


def context_rank() -> int:
    """Context-parallel rank: among those that share each sequence."""
    return parallel_state.get_context_parallel_rank()


def context_size() -> int:
    """Context-parallel size."""
    return parallel_state.get_context_parallel_world_size()


def context_group() -> dist.ProcessGroup:
    """The context-parallel group."""
    return parallel_state.get_context_parallel_group()


def token_rank() -> int:
    """Rank in data and context parallelism together: among all that see different tokens with the same parameters."""
    return parallel_state.get_data_parallel_rank(with_context_parallel=True)


def _token_group() -> dist.ProcessGroup:
    """The group of data and context parallelism together: same parameters, experts apart, and different tokens."""
    return parallel_state.get_data_parallel_group(with_context_parallel=True)


def group_names() -> dict[str, str]:
    """What this rank's groups are for, by torch's name of each."""
    found: dict[str, str] = {}
    for name, get in (
        ("tensor", parallel_state.get_tensor_model_parallel_group),
        ("pipeline", parallel_state.get_pipeline_model_parallel_group),
        ("context", parallel_state.get_context_parallel_group),
        ("data", parallel_state.get_data_parallel_group),
        ("data and context", partial(parallel_state.get_data_parallel_group, with_context_parallel=True)),
        ("expert", parallel_state.get_expert_model_parallel_group),
        ("expert tensor", parallel_state.get_expert_tensor_parallel_group),
        ("expert and tensor", parallel_state.get_expert_tensor_and_model_parallel_group),
        ("expert data", parallel_state.get_expert_data_parallel_group),
        ("model", parallel_state.get_model_parallel_group),
        ("tensor and context", parallel_state.get_tensor_and_context_parallel_group),
        ("tensor, data and context", partial(parallel_state.get_tensor_and_data_parallel_group, True)),
        ("tied embeddings", partial(parallel_state.get_embedding_group, check_initialized=False)),
    ):
        group = get()
        if isinstance(group, dist.ProcessGroup):
            found.setdefault(group.group_name, name)
    return found


RandomState = dict[str, torch.Tensor]


def seed_everything(seed: int) -> None:
    """Seeds Python, numpy and torch alike on all ranks that hold the same parameters.

    Pipeline stages get different seeds, as in Megatron-LM (a stage draws its own layers), and
    tensor-parallel ranks share one, with Megatron's tracker of per-rank states beside it. Two layouts
    therefore draw different random weights: layouts are compared from one shared checkpoint.
    """
    stage_seed = seed + 100 * pipeline_rank()
    random.seed(stage_seed)
    np.random.seed(stage_seed)
    torch.manual_seed(stage_seed)
    tensor_parallel.model_parallel_cuda_manual_seed(stage_seed, force_reset_rng=True)


def random_state() -> RandomState:
    """The states that training draws from, as tensors: torch's on CPU and GPU and those of Megatron's tracker."""
    state = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state()
    tracker = tensor_parallel.get_cuda_rng_tracker().get_states()
    return state | {f"tracker.{name}": value for name, value in tracker.items()}


def restore_random_state(state: RandomState) -> None:
    """Puts states back that random_state gave."""
    torch.set_rng_state(state["cpu"])
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])
    prefix = "tracker."
    tensor_parallel.get_cuda_rng_tracker().set_states(
        {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
    )


@contextmanager
def random_states_kept() -> Iterator[None]:
    """Whatever the block seeds or draws, in Python, numpy or torch, the states after it are those before it."""
    python, numpy, torch_states = random.getstate(), np.random.get_state(), random_state()
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)
        restore_random_state(torch_states)


def sum_over_replicas(values: torch.Tensor) -> torch.Tensor:
    """Sum over the ranks that see other tokens (data and context parallel), in place. Shape and dtype as given."""
    dist.all_reduce(values, group=_token_group())
    return values


def sum_over_context(values: torch.Tensor) -> torch.Tensor:
    """Sum over the ranks that share sequences, in place. Shape and dtype as given."""
    if context_size() > 1:
        dist.all_reduce(values, group=context_group())
    return values


def largest_over_replicas(values: torch.Tensor) -> torch.Tensor:
    """The largest at each place of the ranks that see other tokens, in place. Shape and dtype as given."""
    dist.all_reduce(values, op=dist.ReduceOp.MAX, group=_token_group())
    return values


def sum_over_world(values: torch.Tensor) -> torch.Tensor:
    """Sum over all ranks, in place. Shape and dtype as given."""
    dist.all_reduce(values)
    return values


def from_last_stage(values: torch.Tensor) -> torch.Tensor:
    """Broadcasts a tensor of the last pipeline stage to all stages, in place. All pass the same shape and dtype."""
    if pipeline_size() > 1:
        dist.broadcast(values, src=_last_stage_rank(), group=pipeline_group())
    return values


def all_agree(condition: bool) -> bool:
    """Whether the condition holds on every rank."""
    return bool(smallest_of_each(torch.tensor(int(condition), device=device())).item())


def largest(value: int) -> int:
    """The largest of the ranks' values."""
    return -int(smallest_of_each(torch.tensor(-value, device=device())).item())


def smallest_of_each(values: torch.Tensor) -> torch.Tensor:
    """The smallest of the ranks' values at each place, in place. Shape and dtype as given."""
    dist.all_reduce(values, op=dist.ReduceOp.MIN)
    return values


def gathered(value: Any) -> list[Any]:
    """The values of all ranks, in their order."""
    found: list[Any] = [None] * world_size()
    dist.all_gather_object(found, value)
    return found


def any_rank(condition: bool) -> bool:
    """Whether the condition holds on some rank."""
    return not all_agree(not condition)


def barrier() -> None:
    """Waits for every rank."""
    own = device()
    dist.barrier(device_ids=[own.index] if own.type == "cuda" else None)


def recorded_collectives() -> bytes:
    """This rank's last collectives with the stacks that began them, as torch's flight recorder writes them.

    Nothing where this torch has none.
    """
    name = "_dump_nccl_trace" if device().type == "cuda" else "_dump_fr_trace"
    record: bytes = getattr(torch._C._distributed_c10d, name, bytes)()
    return record


@dataclass
class Handover:
    """What rank 0 leaves for the others in `first_on_rank_zero`."""

    content: bytes | None = None
    """Given by rank 0 inside its block, where it has something; on the others it is there from the beginning of theirs.
    It is small: each rank gets it from the ranks' store."""


@contextmanager
def first_on_rank_zero() -> Iterator[Handover]:
    """Runs the block on rank 0 before the others: for what one rank may have to make and all read.

    They wait on the ranks' store, not in a collective: an hour is no fault there, and neither GPU nor processor is kept
    busy. An error on rank 0 ends the other ranks with an error, not with a wait for the timeout.
    """
    store: Any = dist.distributed_c10d._get_default_store()
    try:
        key = f"megatron-cpt/turn/{store.add(f'megatron-cpt/turns/{rank()}', 1)}"
        left = b"" if rank() == 0 else StoreConnection(store.timeout.total_seconds(), own=True).get(key)
    except dist.DistNetworkError as error:
        raise RankGone("rank 0 is gone, and with it the store in which the ranks meet") from error
    if rank() != 0:
        if left == _FAILED:
            raise RankFailed("rank 0 failed; its message says why")
        yield Handover(left.removeprefix(_MADE) or None)
        return
    handover = Handover()
    try:
        yield handover
    except BaseException:
        store.set(key, _FAILED)
        raise
    store.set(key, _MADE + (handover.content or b""))


_MADE, _FAILED = b"+", b"-"
"""With what the value begins that rank 0 leaves in the store at the end of such a block."""


@contextmanager
def failing_together() -> Iterator[None]:
    """Where the block fails on some ranks, ends it with an error on all: with RankFailed where it did not fail.

    Every rank enters it, and waits at its end for the others in a collective; in the block there is none.
    """
    fault: Exception | None = None
    try:
        yield
    except RankGone:  # no collective would end
        raise
    except Exception as error:
        fault = error
    if not all_agree(fault is None):
        raise fault or RankFailed("another rank failed; its message says why")


def leave_last() -> None:
    """Has rank 0, when it ends with an error, wait for the other ranks that do: for STORE_PATIENCE, no longer.

    The store of the ranks may be in its process. A rank that finds it gone could not hear which one failed first.
    """
    key = "megatron-cpt/ended"
    with suppress(RuntimeError, ValueError):  # no process group yet, or the store is out of reach
        store = StoreConnection(STORE_PATIENCE, own=False)
        ended, deadline = store.add(key, 1), time.monotonic() + STORE_PATIENCE
        while rank() == 0 and ended < world_size() and time.monotonic() < deadline:
            time.sleep(0.02)
            ended = store.add(key, 0)


def share_devices() -> None:
    """Has all gloo groups that torch makes in this process from now on use the same devices."""
    devices = open_devices()

    class OnSharedDevices(ProcessGroupGloo):
        """Made as torch makes a group: by store, rank, size, timeout and, from 2.14 on, further options by name."""

        def __init__(self, store: Store, rank: int, size: int, timeout: timedelta, **further: Any) -> None:
            options = ProcessGroupGloo._Options()  # type: ignore[attr-defined]
            options._devices, options._threads = devices, 2 * len(devices)
            options._timeout = timeout
            for name, value in further.items():
                setattr(options, name, value)
            super().__init__(store, rank, size, options)

    replace_name("torch.distributed.distributed_c10d", "ProcessGroupGloo", OnSharedDevices)


def open_devices() -> list[ProcessGroupGloo.Device]:
    """Those that torch would open: of the interfaces that GLOO_SOCKET_IFNAME lists, else of the host's name."""
    interfaces = os.environ.get("GLOO_SOCKET_IFNAME")
    if not interfaces:
        return [ProcessGroupGloo.create_default_device()]
    return [ProcessGroupGloo.create_device(interface=interface) for interface in interfaces.split(",")]


# Parameters of glibc's mallopt (malloc.h).
_TRIM_THRESHOLD, _MMAP_MAX = -1, -4


def keep_freed_memory() -> bool:
    """Has the C library keep what this process frees; False where it is not glibc, and nothing changes."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    return mallopt is not None and all([mallopt(_MMAP_MAX, 0), mallopt(_TRIM_THRESHOLD, 2**31 - 1)])
