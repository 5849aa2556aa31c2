"""Which kernels a run uses: read from the model and the optimizer that were built, so that no choice is told twice."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields

import torch
from megatron.core.models.common.embeddings import rope_utils
from megatron.core.models.gpt.gpt_model import GPTModel
from megatron.core.optimizer.optimizer import MegatronOptimizer
from megatron.core.transformer.attention import Attention
from megatron.core.transformer.moe.experts import SequentialMLP
from megatron.core.transformer.moe.moe_layer import MoELayer
from megatron.core.transformer.transformer_config import TransformerConfig

from megatron_cpt.model import cross_entropy, linear, rotation
from megatron_cpt.model.attention import ScaledDotProductAttention, SoftCappedAttention
from megatron_cpt.model.build import unwrap
from megatron_cpt.model.window import WindowedAttention
from megatron_cpt.train.optimizer import parts

OWN_ATTENTION = {
    ScaledDotProductAttention: "torch scaled_dot_product_attention",
    WindowedAttention: "torch scaled_dot_product_attention on blocks of a window",
    SoftCappedAttention: "scores in memory (soft cap, or windows beside two bases of positions)",
}
MAKERS = {
    "transformer_engine": "Transformer Engine",
    "apex": "apex",
    "megatron": "Megatron-Core",
    "megatron_cpt": "megatron-cpt",
    "torch": "torch",
}


@dataclass(frozen=True)
class Kernels:
    """The kernels of this rank's part of the model, as the log, versions.json and `doctor` name them."""

    layers: str
    """Linear layers."""
    attention: str
    """Core attention."""
    norm: str
    """Normalisation."""
    rope: str
    """Turning of queries and keys by their positions."""
    loss: str
    """Cross entropy."""
    optimizer: str
    """Update of the weights."""
    context: str
    """How ranks that share sequences see each other's keys."""
    experts: str
    """How a rank computes its experts."""

    def __str__(self) -> str:
        return "; ".join(f"{field.name}: {getattr(self, field.name)}" for field in fields(self))


def kernels_of(model: Sequence[torch.nn.Module], optimizer: MegatronOptimizer) -> Kernels:
    """What the chunks of a model and their optimizer are made of."""
    chunks = unwrap(model)
    modules = [module for chunk in chunks for module in chunk.modules()]
    attention = [module for module in modules if isinstance(module, Attention)]
    cores = [module.core_attention for module in attention]
    own = all(isinstance(core, ScaledDotProductAttention) for core in cores)
    return Kernels(
        layers=listed(made_by(module.linear_proj) for module in attention) + products_of(chunks[0].config),
        attention=listed(OWN_ATTENTION.get(type(core)) or named(core) for core in cores),
        norm=listed(named(module) for module in modules if is_norm(module)),
        rope=rope_of(chunks[0]),
        loss=loss_of(chunks[0].config),
        optimizer=listed(optimizer_of(part.optimizer) for part in parts(optimizer)),
        context="keys and values gathered" if own else listed(made_by(core) for core in cores),
        experts=listed(experts_of(module) for module in modules if isinstance(module, MoELayer)),
    )


def listed(names: Iterable[str]) -> str:
    """Each name once."""
    return ", ".join(sorted(set(names))) or "none"


def made_by(part: object) -> str:
    """Whose class an object is."""
    module = type(part).__module__
    # Megatron-Core's layers around Transformer Engine's stand in a module named after it.
    package = "transformer_engine" if "transformer_engine" in module else module.partition(".")[0]
    return MAKERS.get(package, package)


def named(part: object) -> str:
    """Whose class an object is, and the class."""
    return f"{made_by(part)} {type(part).__name__}"


def is_norm(module: torch.nn.Module) -> bool:
    """Whether a module is a norm, or a layer that one is fused with."""
    return any(kind in type(module).__name__ for kind in ("RMSNorm", "LayerNorm"))


def products_of(config: TransformerConfig) -> str:
    """What multiplies in linear layers, where it is of our choosing."""
    ours = linear.serves() and config.params_dtype is torch.float32 and config.tensor_model_parallel_size == 1
    return ", products by oneDNN" if ours else ""


def rope_of(model: GPTModel) -> str:
    """What turns queries and keys."""
    if model.config.apply_rope_fusion:
        return "Transformer Engine (fused)"
    whole_heads = 2 * len(model.rotary_pos_emb.inv_freq) == model.config.kv_channels
    ours = rope_utils._apply_rotary_pos_emb_bshd is rotation.rotate
    return "megatron-cpt, whole heads in one pass" if ours and whole_heads else "Megatron-Core"


def loss_of(config: TransformerConfig) -> str:
    """What computes the cross entropy."""
    if cross_entropy.serves():
        return "megatron-cpt, rows in the cache"
    if not config.cross_entropy_loss_fusion:
        return "Megatron-Core cross entropy"
    return "Transformer Engine cross entropy" if config.cross_entropy_fusion_impl == "te" else "Megatron-Core fused"


def optimizer_of(optimizer: torch.optim.Optimizer) -> str:
    """What updates the weights."""
    fused = isinstance(optimizer, torch.optim.AdamW) and all(group.get("fused") for group in optimizer.param_groups)
    return named(optimizer) + (" (fused)" if fused else "")


def experts_of(layer: MoELayer) -> str:
    """How a layer's experts are computed."""
    one_by_one = isinstance(layer.experts, SequentialMLP)
    return f"{made_by(layer.experts)}, {'one after the other' if one_by_one else 'grouped'}"
