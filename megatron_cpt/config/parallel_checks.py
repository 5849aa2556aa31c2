"""Rules on how ranks share the model, the sequences and the batches of a run."""

from collections.abc import Iterator
from math import prod

from megatron_cpt.config.errors import Fault
from megatron_cpt.config.schema import ParallelSettings, RunConfig
from megatron_cpt.config.units import nearest_multiples


def rank_faults(config: RunConfig, world_size: int | None) -> Iterator[Fault]:
    """Batches and model parts that the ranks cannot share evenly, and settings that lack what they rest on."""
    parallel, training = config.parallel, config.training
    yield from _dependence_faults(config)
    sizes = {"tensor": parallel.tensor, "pipeline": parallel.pipeline, "context": parallel.context}
    if world_size is not None and world_size < 1:
        yield Fault(f"{world_size} ranks", "a run has at least one.", "Give `--nproc` a number from 1 on.")
        return
    traced = config.run.profile_ranks if config.run.profile is not None else []
    if world_size is not None and any(rank >= world_size for rank in traced):
        yield Fault(f"run.profile_ranks = {traced}", f"the ranks are 0 to {world_size - 1}.", "Name some of them.")
    model_ranks = prod(sizes.values())
    if world_size is not None and world_size % model_ranks:
        factors = " * ".join(f"parallel.{name}" for name, size in sizes.items() if name != "context" or size > 1)
        yield Fault(
            f"{world_size} ranks",
            f"each copy of the model takes {factors} = {model_ranks} ranks.",
            f"Start a multiple of {model_ranks} ranks, or lower those sizes.",
        )
        return
    replicas = 1 if world_size is None else world_size // model_ranks
    forward = training.micro_batch_size * replicas
    if training.global_batch_size % forward:
        factors = "training.micro_batch_size" + (" * data-parallel ranks" if replicas > 1 else "")
        yield Fault(
            f"training.global_batch_size = {training.global_batch_size}",
            f"it should be a multiple of {factors} = {forward}.",
            f"The nearest are {nearest_multiples(training.global_batch_size, forward)}.",
        )
    elif in_ramp := [*_ramp_faults(config, forward)]:
        yield from in_ramp
    elif world_size is not None:
        sizes_of_steps = [*(piece.size for piece in config.batches.ramp), training.global_batch_size]
        for micro_batches in sorted({size // forward for size in sizes_of_steps}):
            yield from _interleaving_faults(parallel, micro_batches)
    if world_size is not None and replicas * parallel.context % parallel.expert:
        yield Fault(
            f"parallel.expert = {parallel.expert}",
            f"experts are divided among the {replicas * parallel.context} ranks that would hold the same ones.",
            f"Use a divisor of {replicas * parallel.context}, or start more ranks.",
        )


def _dependence_faults(config: RunConfig) -> Iterator[Fault]:
    """Settings that mean nothing without another one."""
    parallel, length = config.parallel, config.data.sequence_length
    if parallel.sequence and parallel.tensor == 1:
        rule = "it divides sequences over tensor-parallel ranks, and parallel.tensor is 1."
        yield Fault("parallel.sequence = true", rule, "Raise parallel.tensor, or take it out.")
    parts = sequence_parts(parallel)
    if length % parts:
        names = [f"parallel.tensor = {parallel.tensor}"] if parallel.sequence else []
        names += [f"2 * parallel.context = {2 * parallel.context}"] if parallel.context > 1 else []
        yield Fault(
            f"data.sequence_length = {length}",
            f"ranks that share sequences share them evenly: it should be a multiple of {' times '.join(names)}.",
            f"The nearest are {nearest_multiples(length, parts)}.",
        )
    if parallel.virtual_pipeline > 1 and parallel.pipeline == 1:
        rule = "a pipeline of one stage has nothing to interleave."
        yield Fault(
            f"parallel.virtual_pipeline = {parallel.virtual_pipeline}", rule, "Raise parallel.pipeline, or set it to 1."
        )
    passed = config.megatron.transformer
    if isinstance(passed.get("cp_comm_type"), list):
        # Megatron-LM pull request 3389.
        yield Fault(
            f"megatron.transformer.cp_comm_type = {passed['cp_comm_type']}",
            "Megatron-Core before 0.17 gives each layer the word of the next.",
            "Give one word for all layers.",
        )
    if passed.get("tp_comm_overlap"):
        yield Fault(
            "megatron.transformer.tp_comm_overlap = true",
            "Transformer Engine overlaps tensor-parallel communication in buffers of its own, which are not made here: "
            "the first layer would fail.",
            "Take it out. parallel.sequence and the overlaps of data parallelism are there.",
        )
    if parallel.virtual_pipeline > 1 and passed.get("deallocate_pipeline_outputs"):
        # Megatron-LM pull request 4047.
        yield Fault(
            "megatron.transformer.deallocate_pipeline_outputs = true",
            "Megatron-Core before 0.18 frees what an interleaved pipeline is still sending, and the next stage reads "
            "other numbers.",
            "Take it out, or set parallel.virtual_pipeline to 1.",
        )
    balance = passed.get("moe_router_load_balancing_type")
    together = config.data.attention == "within_documents" and config.training.micro_batch_size > 1
    if together and "seq_aux_loss" in ([balance] if isinstance(balance, str) else balance or []):
        yield Fault(
            f"megatron.transformer.moe_router_load_balancing_type = {balance}",
            "with data.attention: within_documents a micro batch is one row, and the balance of each sequence would be "
            "that of the row.",
            "Set training.micro_batch_size to 1, or use aux_loss.",
        )
    if parallel.overlap_param_gather and not parallel.distributed_optimizer:
        rule = "parameters are gathered only where the distributed optimizer divides them."
        yield Fault("parallel.overlap_param_gather = true", rule, "Set parallel.distributed_optimizer, or take it out.")
    elif parallel.overlap_param_gather and not parallel.overlap_grad_reduce:
        rule = "Megatron-Core overlaps the gathering of parameters only together with the reduction of gradients."
        yield Fault("parallel.overlap_param_gather = true", rule, "Set parallel.overlap_grad_reduce as well.")


def _ramp_faults(config: RunConfig, forward: int) -> Iterator[Fault]:
    """A ramp of batch sizes that does not lead to the full one, or whose pieces the ranks cannot share evenly.

    Args:
        forward: sequences of one forward pass over all replicas.
    """
    ramp, size = config.training.batch_size_rampup, config.training.global_batch_size
    if ramp is None:
        return
    if ramp.start >= size:
        rule = f"it should be below training.global_batch_size = {size}."
        yield Fault(f"training.batch_size_rampup.start = {ramp.start}", rule, "Lower it, or take the ramp out.")
        return
    if (size - ramp.start) % ramp.increment:
        rule = f"it does not lead from {ramp.start} to training.global_batch_size = {size} in even pieces."
        remedy = f"Use a divisor of {size - ramp.start}."
        yield Fault(f"training.batch_size_rampup.increment = {ramp.increment}", rule, remedy)
    for name, value in (("start", ramp.start), ("increment", ramp.increment)):
        if value % forward:
            yield Fault(
                f"training.batch_size_rampup.{name} = {value}",
                f"every batch of the ramp should be a multiple of {forward}, the sequences of one forward pass over "
                "all data-parallel ranks.",
                f"The nearest are {nearest_multiples(value, forward)}.",
            )


def sequence_parts(parallel: ParallelSettings) -> int:
    """Equal parts that the ranks cut each sequence into."""
    return (parallel.tensor if parallel.sequence else 1) * (2 * parallel.context if parallel.context > 1 else 1)


def _interleaving_faults(parallel: ParallelSettings, micro_batches: int) -> Iterator[Fault]:
    """Micro batches of a step that do not fill rounds of an interleaved pipeline."""
    if parallel.virtual_pipeline > 1 and parallel.pipeline > 1 and micro_batches % parallel.pipeline:
        yield Fault(
            f"{micro_batches} micro batches in a step",
            f"an interleaved pipeline takes a multiple of parallel.pipeline = {parallel.pipeline} of them.",
            "Raise training.global_batch_size, lower training.micro_batch_size, or set parallel.virtual_pipeline to 1.",
        )
