"""Every name of Megatron-Core and torch that is replaced: one table, and the one function that replaces.

`replace_name` refuses what the table does not list, what the installed version does not have (a name that was changed
upstream would switch a correction off in silence), and, where CUDA is, what the table does not name as needed there.
A name with `()` is replaced in single objects, one without in the whole process. Importing this file imports neither
torch nor Megatron-Core.
"""

import sys
from dataclasses import dataclass
from typing import Any

_ALL_RELEASES = "megatron-core 0.16.1 to 0.19"


@dataclass(frozen=True, kw_only=True)
class Patch:
    """A name that is replaced."""

    module: str
    """The module whose global it is; `megatron.core.*`: each of them."""
    name: str
    """In that module: `function`, `Class.method`, or `Class().method` of single objects."""
    reason: str
    """What is wrong or slow without it."""
    versions: str
    """Releases that need it."""
    switch: str
    """The function of ours that replaces it, by package and file."""
    on_gpu: str = ""
    """Why it is needed where CUDA is. Empty: on a CPU alone."""
    is_defined: bool = True
    """False: the module reads the name, and in some releases or on machines without CUDA does not define it."""


_PLATFORM = "parallel.cpu_platform.install"
_KERNELS = "model.cpu_kernels.install_cpu_kernels"

PATCHES: tuple[Patch, ...] = (
    Patch(
        module="megatron.core.*",
        name="torch",
        reason="CUDA is asked for by name: devices, streams, events, random states",
        versions=_ALL_RELEASES,
        switch=_PLATFORM,
        is_defined=False,  # not every module imports torch
    ),
    Patch(
        module="torch",
        name="Tensor.type",
        reason="Megatron-Core's optimizer compares names of types, and knows those of CUDA alone",
        versions=_ALL_RELEASES,
        switch=_PLATFORM,
    ),
    Patch(
        module="torch",
        name="Tensor.cuda",
        reason="a method that no other global `torch` reaches; the identity",
        versions=_ALL_RELEASES,
        switch=_PLATFORM,
    ),
    Patch(
        module="torch",
        name="nn.Module.cuda",
        reason="a method that no other global `torch` reaches; the identity",
        versions=_ALL_RELEASES,
        switch=_PLATFORM,
    ),
    Patch(
        module="megatron.core.jit",
        name="jit_fuser",
        reason="torch.compile, bound by decorators at import: on a CPU it costs more than it gives",
        versions=_ALL_RELEASES,
        switch=_PLATFORM,
    ),
    Patch(
        module="megatron.core.tensor_parallel.random",
        name="_get_cuda_rng_state",
        reason="reads torch.cuda.default_generators, which is empty",
        versions=_ALL_RELEASES,
        switch=_PLATFORM,
    ),
    Patch(
        module="megatron.core.tensor_parallel.random",
        name="_set_cuda_rng_state",
        reason="writes to torch.cuda.default_generators, which is empty",
        versions=_ALL_RELEASES,
        switch=_PLATFORM,
    ),
    Patch(
        module="megatron.core.dist_checkpointing.mapping",
        name="ShardedTensor.init_data",
        reason="`torch.empty` is the default of an argument: bound before the module has another `torch`",
        versions=_ALL_RELEASES,
        switch=_PLATFORM,
    ),
    Patch(
        module="megatron.core.tensor_parallel.mappings",
        name="_gather_along_first_dim",
        reason="gloo gathers no parts of unequal length",
        versions=_ALL_RELEASES,
        switch=_PLATFORM,
    ),
    Patch(
        module="megatron.core.tensor_parallel.mappings",
        name="_reduce_scatter_along_first_dim",
        reason="gloo scatters no parts of unequal length",
        versions=_ALL_RELEASES,
        switch=_PLATFORM,
    ),
    Patch(
        module="megatron.core.transformer.moe.token_dispatcher",
        name="maybe_move_tensor_to_cpu",
        reason="leaves tensors that are not on CUDA alone, but all_to_all_single wants lists of ints",
        versions=_ALL_RELEASES,
        switch=_PLATFORM,
    ),
    Patch(
        module="megatron.core.transformer.moe.moe_utils",
        name="te_general_gemm",
        reason="is asked whether it is None, and does not exist without Transformer Engine",
        versions="megatron-core 0.16.1",
        switch=_PLATFORM,
        is_defined=False,
    ),
    Patch(
        module="torch.distributed.distributed_c10d",
        name="ProcessGroupGloo",
        reason="each group has a thread that wakes a hundred times a second; all share their devices",
        versions="torch 2.10 on",
        switch="parallel.groups.init_process_group",
    ),
    Patch(
        module="megatron.core.transformer.mlp",
        name="weighted_bias_quick_geglu_impl",
        reason="the gate of experts is bounded before its bias is added",
        versions=_ALL_RELEASES,
        switch="model.activations.install_bounded_gate",
        on_gpu="the function of all devices",
    ),
    Patch(
        module="megatron.core.tensor_parallel.layers",
        name="linear_with_grad_accumulation_and_async_allreduce",
        reason="in fp32 two of three products are faster by oneDNN than by MKL",
        versions=_ALL_RELEASES,
        switch=_KERNELS,
    ),
    Patch(
        module="megatron.core.tensor_parallel.layers",
        name="fused_weight_gradient_mlp_cuda",
        reason="apex's module; without it a weight's gradient is written, read, and added to its buffer",
        versions=_ALL_RELEASES,
        switch=_KERNELS,
        is_defined=False,
    ),
    Patch(
        module="megatron.core.transformer.mlp",
        name="bias_swiglu_impl",
        reason="adds an offset of zero, and joins two gradients by copying",
        versions=_ALL_RELEASES,
        switch=_KERNELS,
    ),
    Patch(
        module="megatron.core.models.common.embeddings.rope_utils",
        name="_apply_rotary_pos_emb_bshd",
        reason="splits and joins heads of which all is turned: two copies forward, four backward",
        versions=_ALL_RELEASES,
        switch=_KERNELS,
    ),
    Patch(
        module="megatron.core.models.common.language_module.language_module",
        name="LanguageModule.compute_language_model_loss",
        reason="the cross entropy makes five passes over all logits",
        versions=_ALL_RELEASES,
        switch=_KERNELS,
    ),
    Patch(
        module="megatron.core.optimizer.clip_grads",
        name="l2_norm_impl",
        reason="adds squares one after the other in float32: 3.6 % are lost at 262M elements",
        versions=_ALL_RELEASES,
        switch=_KERNELS,
    ),
    Patch(
        module="megatron.core.optimizer.clip_grads",
        name="multi_tensor_scale_impl",
        reason="scales into a copy, and copies that back",
        versions=_ALL_RELEASES,
        switch=_KERNELS,
    ),
    Patch(
        module="megatron.core.transformer.moe.router",
        name="TopKRouter.attach_and_log_load_balancing_loss",
        reason="counts an n-th of the balance loss where n ranks share a sequence; that of each sequence by its size",
        versions="megatron-core 0.16.1 to 0.18",
        switch="model.mcore_patches.install_router_losses",
        on_gpu="a factor that depends on the ranks of a sequence, not on the device",
    ),
    Patch(
        module="megatron.core.transformer.moe.router",
        name="TopKRouter.apply_z_loss",
        reason="counts an n-th of the router's z-loss where n ranks share a sequence",
        versions="megatron-core 0.16.1 to 0.18",
        switch="model.mcore_patches.install_router_losses",
        on_gpu="a factor that depends on the ranks of a sequence, not on the device",
    ),
    Patch(
        module="megatron.core.models.common.language_module.language_module",
        name="LanguageModule().compute_language_model_loss",
        reason="has no z-loss; replaced where `training.z_loss` is not 0",
        versions=_ALL_RELEASES,
        switch="model.forward.add_z_loss",
        on_gpu="a setting that is asked for on any device",
    ),
    Patch(
        module="megatron.core.optimizer.distrib_optimizer",
        name="DistributedOptimizer.sharded_param_state_fully_reshardable",
        reason="cuts parameters out of gathered buckets at offsets that count the padding",
        versions=_ALL_RELEASES,
        switch="checkpoint.distributed_optimizer.replace_packing",
        on_gpu="offsets in buckets, which are padded on GPUs as well",
    ),
    Patch(
        module="megatron.core.optimizer.distrib_optimizer",
        name="DistributedOptimizer.sharded_param_state_dp_reshardable",
        reason="fails where a rank has nothing but padding of a bucket, and writes beyond its saved length",
        versions=_ALL_RELEASES,
        switch="checkpoint.distributed_optimizer.replace_packing",
        on_gpu="offsets in buckets, which are padded on GPUs as well",
    ),
    Patch(
        module="megatron.core.optimizer.distrib_optimizer",
        name="DistributedOptimizer()._set_main_param_and_optimizer_states",
        reason="looks for torch's `step` among the tensors; while a checkpoint is loaded, compares its main weights",
        versions=_ALL_RELEASES,
        switch="train.optimizer.build_optimizer; checkpoint.distributed_optimizer.differing",
        on_gpu="torch's AdamW is used wherever neither Transformer Engine nor apex is; weights are compared everywhere",
    ),
    Patch(
        module="megatron.core.optimizer.distrib_optimizer",
        name="DistributedOptimizer().state_dict",
        reason="takes the number of updates from the state of a parameter; replaced where a rank holds none",
        versions=_ALL_RELEASES,
        switch="train.optimizer.build_optimizer",
        on_gpu="torch's AdamW is used wherever neither Transformer Engine nor apex is",
    ),
    Patch(
        module="megatron.core.dist_checkpointing.strategies.filesystem_async",
        name="_results_queue",
        reason="its process dies of the SIGTERM that a scheduler sends to all processes of a job",
        versions=_ALL_RELEASES,
        switch="checkpoint.save.keep_results",
        on_gpu="a process of the host",
    ),
    *(
        Patch(
            module=module,
            name=name,
            reason=reason,
            versions=versions,
            switch=f"simulation.gpu_kernels.{switch}",
        )
        for module, name, reason, versions, switch in (
            ("torch", "distributed.new_group", "groups of a simulated world", "torch 2.10 on", "start_fake_ranks"),
            (
                "torch",
                "distributed.all_gather_object",
                "reads what no rank has sent",
                "torch 2.10 on",
                "start_fake_ranks",
            ),
            (
                "torch",
                "nn.RMSNorm.forward",
                "a simulated rank keeps what CUDA's kernel keeps",
                "torch 2.10 on",
                "install",
            ),
            (
                "torch",
                "nn.functional.scaled_dot_product_attention",
                "a simulated rank keeps what the flash kernel keeps",
                "torch 2.10 on",
                "install",
            ),
            (
                "torch.nn.attention.bias",
                "causal_lower_right",
                "a mask that fake tensors cannot be, and that the attention of a simulated rank does not read",
                "torch 2.10 on",
                "install",
            ),
            (
                "torch",
                "Tensor.cpu",
                "numbers of fake tensors, for which the host waits once",
                "torch 2.10 on",
                "install",
            ),
            (
                "torch",
                "Tensor.numpy",
                "an array of those numbers, where a fake mode has it of memory that nobody wrote",
                "torch 2.10 on",
                "install",
            ),
            ("torch", "nn.Module.to", "parameters are fake tensors, where they are to be", "torch 2.10 on", "install"),
            ("torch", "nn.Module.bfloat16", "parameters are fake tensors, in bf16 already", "torch 2.10 on", "install"),
            (
                "megatron.core.transformer.moe.token_dispatcher",
                "MoEAlltoAllTokenDispatcher._maybe_dtoh_and_synchronize",
                "counts of routed tokens come from fake tensors; they are even",
                _ALL_RELEASES,
                "install",
            ),
        )
    ),
)
_BY_NAME = {(patch.module, patch.name): patch for patch in PATCHES}


def replace_name(module: str, name: str, value: Any, owner: object = None) -> None:
    """Gives a name of the table another value.

    Args:
        module: as in the table; it must have been imported.
        name: as in the table.
        owner: the object that a name with `()` is replaced in.
    Raises:
        KeyError: the table does not list it.
        AttributeError: the installed version does not have it.
        RuntimeError: CUDA is there, and the table says of CPUs alone that it is needed.
    """
    patch = _BY_NAME[module, name]
    if not patch.on_gpu and sys.modules["torch"].cuda.is_available():
        raise RuntimeError(f"{module}.{name} is replaced on CPUs alone")
    path, _, attribute = name.rpartition(".")
    if owner is None:
        owner = sys.modules[module]
        for step in path.split(".") if path else ():
            owner = getattr(owner, step)
    if patch.is_defined and not hasattr(owner, attribute):
        raise AttributeError(f"{module}.{name}: not in the installed version, so it cannot be replaced")
    setattr(owner, attribute, value)
