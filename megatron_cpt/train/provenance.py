"""What a run came from and what it leaves: lineage.json, versions.json, kernels used, Hugging Face exports.

Kernels are read from the model and the optimizer that were built.
"""

import platform
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from megatron.core.models.common.language_module.language_module import LanguageModule
from megatron.core.optimizer.optimizer import MegatronOptimizer
from megatron.core.transformer.attention import Attention
from megatron.core.transformer.moe.experts import SequentialMLP
from megatron.core.transformer.moe.moe_layer import MoELayer
from megatron.core.transformer.transformer_config import TransformerConfig

from megatron_cpt import __version__
from megatron_cpt.checkpoint.distributed_optimizer import chained_optimizers
from megatron_cpt.checkpoint.hf_dtypes import Conversion, TensorDtypes, roundings, word_of
from megatron_cpt.checkpoint.hf_export import export_hf
from megatron_cpt.checkpoint.hf_folder import read_history
from megatron_cpt.checkpoint.hf_weights import trained_dtypes
from megatron_cpt.checkpoint.model_card import model_card, training_of
from megatron_cpt.config.load import dump_config, plain
from megatron_cpt.config.schedule import Areas, known_history, learning_rate
from megatron_cpt.config.schema import BaseHistorySettings, RunConfig
from megatron_cpt.families.shape import places_in_stacks, stated_dtype
from megatron_cpt.model import cpu_kernels
from megatron_cpt.model.attention import (
    ChunkedAttention,
    ScaledDotProductAttention,
    SoftCappedAttention,
    WindowedAttention,
)
from megatron_cpt.model.build import DTYPES, gather_parameters, unwrap
from megatron_cpt.model.gated_delta_net import GatedDeltaNet, uses_fla
from megatron_cpt.parallel.groups import all_agree
from megatron_cpt.parallel.mcore_compat import release
from megatron_cpt.planning.resume_changes import ResumeChanges
from megatron_cpt.runs.checkpoint_state import complete_checkpoints
from megatron_cpt.runs.folder import write_durably
from megatron_cpt.train.run import Run


def export_due(run: Run, step: int) -> bool:
    """Whether the run exports after this step, the end apart."""
    settings = run.config.checkpoint.export_hf
    if settings is None or settings.every is None:
        return False
    return step % settings.every.steps(run.config.tokens_per_step) == 0


def export_step(run: Run, step: int) -> None:
    """Writes the model as it stands after a step, before the checkpoint: a run that is cut short makes up for it."""
    export(run, step, run.folder.hf_of_step(step))


def export_end(run: Run) -> None:
    """Writes the trained model, if the config asks for it."""
    settings = run.config.checkpoint.export_hf
    if settings is not None and settings.end:
        export(run, run.plan.steps, run.folder.hf)


def dtype_notes(run: Run) -> list[str]:
    """What is rounded on the way from the parent into the model and from there into exports, a sentence each."""
    config, hf_folder, notes = run.config, Path(run.config.model.hf), []
    trained = trained_dtypes(run.shape, DTYPES[config.training.precision])
    stacks = places_in_stacks(run.shape, run.dtypes.stacks)
    from_folder = config.model.weights == "hf" and config.init_from.checkpoint is None and not run.first_step
    if from_folder:
        read = {name: Conversion(word_of(run.dtypes.of(name, own)), word_of(own)) for name, own in trained.items()}
        rounded = roundings(read, stacks)
        if rounded:
            notes.append(f"weights: read from model.hf in the dtype of training.precision; rounded: {rounded}")
        stated = stated_dtype(hf_folder)
        if stated is not None and stated != run.dtypes.common:
            notes.append(
                f"weights: config.json of model.hf says {stated}, its tensors are {run.dtypes}; the tensors hold"
            )
    if config.checkpoint.export_hf is not None:
        dtypes = export_dtypes(run)
        exported = {name: Conversion(word_of(own), word_of(dtypes.of(name, own))) for name, own in trained.items()}
        if written := roundings(exported, stacks):
            by = "checkpoint.export_hf.dtype" if config.checkpoint.export_hf.dtype else "the parent's tensors"
            notes.append(f"exports: in the dtype of {by}; rounded from what is trained: {written}")
    return notes


def export_dtypes(run: Run) -> TensorDtypes:
    """The dtypes of an export's tensors: what is asked for, else those of the folder the model comes from."""
    settings = run.config.checkpoint.export_hf
    if settings is None or not settings.dtype:
        return run.dtypes
    return replace(run.dtypes, common=settings.dtype, others={})


def export(run: Run, step: int, output: Path) -> None:
    """Writes the model of a step, unless an earlier attempt has written it. Every rank calls it."""
    if not all_agree(not output.exists()):
        return
    sequences = run.config.sequences_at(step)
    blend, history = run.plan.blend, run_lineage(run, step)
    training = training_of(
        step, run.config.tokens_at(step), blend.describe(sequences), blend.source_sequences(sequences)
    )
    gather_parameters(run.model)
    export_hf(
        unwrap(run.model),
        run.shape,
        run.hf_folder,
        output,
        export_dtypes(run),
        lineage=history,
        card=model_card(Path(run.config.model.hf).name, run.folder.path.name, training, history),
    )


_OWN_ATTENTION = {
    ScaledDotProductAttention: "torch scaled_dot_product_attention",
    WindowedAttention: "torch scaled_dot_product_attention in blocks (sliding window)",
    ChunkedAttention: "torch scaled_dot_product_attention in chunks",
    SoftCappedAttention: "full score matrix (soft cap)",
}
_MAKERS = {
    "transformer_engine": "Transformer Engine",
    "apex": "apex",
    "megatron": "Megatron-Core",
    "megatron_cpt": "megatron-cpt",
    "torch": "torch",
}


@dataclass(frozen=True)
class Kernels:
    """The kernels of this rank's part of the model, as the log, versions.json and `doctor` name them."""

    model: str
    """Megatron-Core's class that the layers are in: GPTModel, or HybridModel where a release has no GPTModel."""
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
    delta_nets = [module for module in modules if isinstance(module, GatedDeltaNet)]
    projections = [module.linear_proj for module in attention] + [module.out_proj for module in delta_nets]
    own = all(isinstance(core, ScaledDotProductAttention) for core in cores)
    return Kernels(
        model=next(kind.__name__ for kind in type(chunks[0]).__mro__ if _maker(kind) == "Megatron-Core"),
        layers=listed(map(_made_by, projections)) + _products_of(chunks[0].config),
        attention=listed(
            [*(_OWN_ATTENTION.get(type(core)) or named(core) for core in cores), *map(_delta_rule_of, delta_nets)]
        ),
        norm=listed(named(module) for module in modules if _is_norm(module)),
        rope=_rope_of(chunks[0]),
        loss=_loss_of(chunks[0].config),
        optimizer=listed(_optimizer_of(part.optimizer) for part in chained_optimizers(optimizer)),
        context="all-gather of keys and values" if own else listed(_made_by(core) for core in cores),
        experts=listed(_experts_of(module) for module in modules if isinstance(module, MoELayer)),
    )


def _delta_rule_of(delta_net: GatedDeltaNet) -> str:
    """What computes the rule of a gated delta net."""
    weight = delta_net.in_proj.weight
    by_fla = uses_fla(weight.device, weight.dtype)
    return f"gated delta net by {'flash-linear-attention' if by_fla else 'torch, in chunks'}"


def listed(names: Iterable[str]) -> str:
    """Each name once."""
    return ", ".join(sorted(set(names))) or "none"


def _made_by(part: object) -> str:
    """Whose class an object is."""
    return _maker(type(part))


def _maker(kind: type) -> str:
    """Whose class it is."""
    module = kind.__module__
    # Megatron-Core's layers around Transformer Engine's stand in a module named after it.
    package = "transformer_engine" if "transformer_engine" in module else module.partition(".")[0]
    return _MAKERS.get(package, package)


def named(part: object) -> str:
    """Whose class an object is, and the class."""
    return f"{_made_by(part)} {type(part).__name__}"


def _is_norm(module: torch.nn.Module) -> bool:
    """Whether a module is a norm, or a layer that one is fused with."""
    return any(kind in type(module).__name__ for kind in ("RMSNorm", "LayerNorm"))


def _products_of(config: TransformerConfig) -> str:
    """What multiplies in linear layers, where it is of our choosing."""
    if config.gradient_accumulation_fusion:
        return " (weight gradients added in their product)"
    ours = (
        cpu_kernels.linear_is_enabled()
        and config.params_dtype is torch.float32
        and config.tensor_model_parallel_size == 1
    )
    return " (oneDNN)" if ours else ""


def _rope_of(model: LanguageModule) -> str:
    """What turns queries and keys."""
    if model.config.apply_rope_fusion:
        return "Transformer Engine (fused)"
    # Latent attention turns all of what it gives the kernel.
    whole_heads = model.config.multi_latent_attention or (
        2 * len(model.rotary_pos_emb.inv_freq) == model.config.kv_channels
    )
    ours = cpu_kernels.are_installed() and not model.config.rotary_interleaved
    return "megatron-cpt (CPU kernel)" if ours and whole_heads else "Megatron-Core"


def _loss_of(config: TransformerConfig) -> str:
    """What computes the cross entropy."""
    if cpu_kernels.cross_entropy_is_enabled():
        return "megatron-cpt (CPU kernel)"
    if not config.cross_entropy_loss_fusion:
        return "Megatron-Core cross entropy"
    return "Transformer Engine cross entropy" if config.cross_entropy_fusion_impl == "te" else "Megatron-Core fused"


def _optimizer_of(optimizer: torch.optim.Optimizer) -> str:
    """What updates the weights."""
    fused = isinstance(optimizer, torch.optim.AdamW) and all(group.get("fused") for group in optimizer.param_groups)
    return named(optimizer) + (" (fused)" if fused else "")


def _experts_of(layer: MoELayer) -> str:
    """How a layer's experts are computed."""
    one_by_one = isinstance(layer.experts, SequentialMLP)
    return f"{_made_by(layer.experts)}, {'sequential' if one_by_one else 'grouped'}"


_PACKAGES = ("torch", "megatron-core", "numpy", "transformers", "tokenizers", "transformer-engine")
_FROM_RANDOM = {"forward_area": 0.0, "annealing_area": 0.0, "tokens": 0}
_HISTORY = ("forward_area", "annealing_area", "peak_learning_rate", "final_learning_rate", "tokens")


def versions(kernels: Kernels) -> dict[str, Any]:
    """Versions of what computes, the machine and the kernels."""
    return {
        "python": platform.python_version(),
        "packages": {"megatron-cpt": __version__} | {name: installed_version(name) for name in _PACKAGES},
        "machine": platform.platform(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "kernels": asdict(kernels),
    }


def installed_version(package: str) -> str | None:
    """The version of a package, None where it is not installed."""
    if package == "megatron-core":
        return release()
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def keep_config(run: Run, changes: ResumeChanges) -> None:
    """Writes the configuration of this start, beside those with which the steps before were made.

    Starts that changed nothing share a file; those whose steps are done again lose theirs, as records do.
    """
    folder, first, text = run.folder, run.first_step, dump_config(run.config)
    kept = folder.configs()
    if not kept and first > run.start_state.first_own_step and folder.config.is_file():
        # An older version kept the last alone.
        write_durably(folder.config_from(run.start_state.first_own_step), folder.config.read_bytes())
        kept = folder.configs()
    for step in [step for step in kept if step >= first]:
        kept.pop(step).unlink()
    if not kept or changes.changes or changes.unknown:
        write_durably(folder.config_from(first), text)
    write_durably(folder.config, text)


def run_lineage(run: Run, step: int) -> dict[str, Any]:
    """The parent of a run and the learning-rate history of both, which the laws of CPT loss need.

    forward_area is S1 and annealing_area S2 of arXiv:2408.11029 (Eq. 1 of arXiv:2505.07796) over all updates
    of the run. The parent's figures are over all that came before, its own parents included; they come from the
    lineage.json that our exports and checkpoints carry and, for what was before that, from `base_history`. They are 0
    for random weights, and null where any part is not known. The run's sums go on from where they were asked for last.

    Args:
        step: the last step told of: with none of the run's own, its figures are 0 and its rates null.
    """
    config, first_own_step, shift = run.config, run.start_state.first_own_step, run.start_state.schedule_shift
    size, consumed = config.tokens_per_step, config.tokens_at
    parent = _parent_of(run)
    areas = run.areas if run.areas.updates <= step - first_own_step else Areas()
    if not areas.updates:
        areas.before = parent["parent_final_learning_rate"]
    for one in range(first_own_step + areas.updates + 1, step + 1):
        areas.add(learning_rate(config.schedule, consumed(one) + shift, config.total_tokens + shift, size))
    own = {
        "forward_area": areas.forward,
        "annealing_area": areas.annealing,
        "peak_learning_rate": areas.peak,
        "final_learning_rate": areas.final,
        "tokens": consumed(step) - consumed(first_own_step),
    }
    return parent | own


def _parent_of(run: Run) -> dict[str, Any]:
    """What a run began from, and its learning-rate history.

    A run that goes on keeps what its lineage.json says: model.hf may be a copy in another place by then. What came from
    `base_history` follows from that of this start.
    """
    config = run.config
    names = ("parent", *(f"parent_{name}" for name in _HISTORY))
    given = plain(config.base_history) if config.base_history is not None else None
    kept = read_history(run.folder.path) if run.first_step > run.start_state.first_own_step else {}
    if "parent" in kept and given is None and kept.get("base_history") is None:
        return {name: kept.get(name) for name in names} | {"base_history": None}
    folder = _parent_folder(config)
    before = _FROM_RANDOM if folder is None else whole_history(read_history(folder), config.base_history)
    shown = config.init_from.checkpoint or config.model.hf
    values = (shown, *map(before.get, _HISTORY))
    return dict(zip(names, values, strict=True)) | {"base_history": given}


def whole_history(lineage: Mapping[str, Any], base: BaseHistorySettings | None = None) -> dict[str, Any]:
    """The learning-rate history of a model from its random weights on: its own run's and that of all before it.

    Args:
        lineage: the content of its lineage.json; empty for a model made elsewhere.
        base: what is known of a model made elsewhere, from which it or the first of its parents comes.
    Returns:
        A value for each of `_HISTORY`; None where a part is not known.
    """
    elsewhere = known_history(base) if base is not None else {}
    if not lineage:
        return {name: elsewhere.get(name) for name in _HISTORY}
    parent = {name: lineage.get(f"parent_{name}") for name in _HISTORY}
    if parent["forward_area"] is None:
        parent |= elsewhere
    whole: dict[str, Any] = {"final_learning_rate": lineage.get("final_learning_rate")}
    for name in ("forward_area", "annealing_area", "tokens"):
        own, before = lineage.get(name), parent[name]
        whole[name] = None if own is None or before is None else own + before
    own, before = lineage.get("peak_learning_rate"), parent["peak_learning_rate"]
    if parent["tokens"] == 0:
        before = own  # random weights have had no rate
    whole["peak_learning_rate"] = None if own is None or before is None else max(own, before)
    return whole


def changed_rate(run: Run) -> str | None:
    """A sentence, where the last step before a resume was trained at another rate than the schedule now says."""
    checkpoints = complete_checkpoints(run.folder.checkpoints)
    if not checkpoints:
        return None
    before = read_history(checkpoints[-1] / "hf").get("final_learning_rate")
    now = run_lineage(run, run.first_step)["final_learning_rate"]
    if before is None or before == now:
        return None
    return (
        f"the schedule has changed: step {run.first_step} was trained at learning rate {before:.6g}, and would now have"
        f" {now:.6g}; the learning rate jumps there, and lineage.json describes the new schedule"
    )


def _parent_folder(config: RunConfig) -> Path | None:
    """The Hugging Face folder of the weights that a run starts from; None where they are drawn at random."""
    if config.init_from.checkpoint is not None:
        return Path(config.init_from.checkpoint) / "hf"
    return Path(config.model.hf) if config.model.weights == "hf" else None
