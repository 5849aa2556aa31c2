"""The ranks of a run and their groups: the one file that names Megatron-Core's parallel_state.

World size = tensor x context x data x pipeline. Ranks are laid out as Megatron-Core does: tensor-parallel
neighbours first, then those that share a sequence, then data parallel, then pipeline stages. Experts are
divided among the ranks of context and data parallel.
"""

import os
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from megatron.core import parallel_state
from megatron.core.models.common.embeddings.rotary_pos_embedding import RotaryEmbedding

from megatron_cpt.config.schema import ParallelSettings
from megatron_cpt.parallel.gloo import share_devices


def device() -> torch.device:
    """The device of this rank: its own GPU, or the CPU."""
    if torch.cuda.is_available():
        return torch.device("cuda", own_gpu(int(os.environ.get("LOCAL_RANK", "0")), torch.cuda.device_count()))
    return torch.device("cpu")


def own_gpu(local_rank: int, visible: int) -> int:
    """The GPU of a process among those that it sees: the one there is, where each is shown its own, as Slurm can."""
    return local_rank if visible > 1 else 0


def join_world(timeout: timedelta = timedelta(minutes=10), store: dist.Store | None = None) -> None:
    """Starts the process group from torchrun's environment (a world of one without it): NCCL on GPUs, gloo on CPUs.

    A silent rank ends the others after the timeout. `store` is where the ranks meet, if not where torchrun says.
    """
    if dist.is_initialized():
        return
    for name, value in {"RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1"}.items():
        os.environ.setdefault(name, value)
    place: dict[str, Any] = {"timeout": timeout}
    if store is not None:
        place |= {"store": store, "rank": int(os.environ["RANK"]), "world_size": int(os.environ["WORLD_SIZE"])}
    elif "MASTER_PORT" not in os.environ:
        place |= {"store": dist.HashStore(), "rank": 0, "world_size": 1}
    if device().type == "cuda":
        torch.cuda.set_device(device())
        dist.init_process_group("nccl", device_id=device(), **place)
    else:
        share_devices()
        dist.init_process_group("gloo", **place)


def divide_world(parallel: ParallelSettings) -> None:
    """Makes Megatron-Core's groups for a layout; an earlier layout of this process is given up."""
    if parallel_state.model_parallel_is_initialized():
        parallel_state.destroy_model_parallel()
    parallel_state.initialize_model_parallel(
        tensor_model_parallel_size=parallel.tensor,
        pipeline_model_parallel_size=parallel.pipeline,
        virtual_pipeline_model_parallel_size=parallel.virtual_pipeline if parallel.virtual_pipeline > 1 else None,
        context_parallel_size=parallel.context,
        expert_model_parallel_size=parallel.expert,
    )


def leave_world() -> None:
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


def is_first(what: str) -> bool:
    """Whether this rank asks so before every other rank; of all that ask, one hears yes. No collective.

    Where the ranks' store cannot be reached it is rank 0.
    """
    try:
        asked = dist.distributed_c10d._get_default_store().add(f"megatron-cpt/{what}", 1)
    except (RuntimeError, ValueError):  # no process group yet, or the store's process is gone
        return os.environ.get("RANK", "0") == "0"
    return asked == 1


def world_size() -> int:
    """Ranks in the world."""
    return dist.get_world_size()


def tensor_rank() -> int:
    """Rank among those that share each layer."""
    return parallel_state.get_tensor_model_parallel_rank()


def tensor_size() -> int:
    """Ranks that share each layer."""
    return parallel_state.get_tensor_model_parallel_world_size()


def tensor_group() -> dist.ProcessGroup:
    """The ranks that share each layer."""
    return parallel_state.get_tensor_model_parallel_group()


def expert_tensor_rank() -> int:
    """Rank among those that share an expert."""
    return parallel_state.get_expert_tensor_parallel_rank()


def expert_tensor_size() -> int:
    """Ranks that share an expert."""
    return parallel_state.get_expert_tensor_parallel_world_size()


def expert_tensor_group() -> dist.ProcessGroup:
    """The ranks that share an expert."""
    return parallel_state.get_expert_tensor_parallel_group()


def expert_data_rank() -> int:
    """Rank among the replicas of this rank's experts."""
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


def last_stage_rank() -> int:
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
    """Rank among those that read other sequences."""
    return parallel_state.get_data_parallel_rank()


def data_size() -> int:
    """Replicas that read other sequences; one may be several ranks that share them."""
    return parallel_state.get_data_parallel_world_size()


def context_rank() -> int:
    """Rank among those that share each sequence."""
    return parallel_state.get_context_parallel_rank()


def context_size() -> int:
    """Ranks that share each sequence."""
    return parallel_state.get_context_parallel_world_size()


def context_group() -> dist.ProcessGroup:
    """The ranks that share each sequence."""
    return parallel_state.get_context_parallel_group()


def token_rank() -> int:
    """Rank among all that hold the same parameters, experts apart, and see other tokens."""
    return parallel_state.get_data_parallel_rank(with_context_parallel=True)


def token_group() -> dist.ProcessGroup:
    """The ranks that hold the same parameters, experts apart, and see other tokens: data and context parallel."""
    return parallel_state.get_data_parallel_group(with_context_parallel=True)
