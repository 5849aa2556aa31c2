"""What a person should know of a run before it is paid for: one sentence each, below the plan and in the log."""

from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path

import orjson

from megatron_cpt.config.schema import EvalIntervalSettings, RunConfig
from megatron_cpt.config.units import short_count
from megatron_cpt.corpus.packing import PackedStream
from megatron_cpt.families.fields import fp8_block, is_mxfp4
from megatron_cpt.families.multimodal import multimodal_of, text_fields
from megatron_cpt.families.others import other_names
from megatron_cpt.families.shape import read_config, unread_fields
from megatron_cpt.mixture.blend import CHEAP_EPOCHS, BlendPlan
from megatron_cpt.planning.cards import gpu_layout
from megatron_cpt.planning.checks import shared_warnings
from megatron_cpt.planning.inputs import RunInputs
from megatron_cpt.planning.start_state import start_state
from megatron_cpt.planning.text_tables import percent
from megatron_cpt.runs.checkpoint_state import find_state

_PASSED_BY = 1.1
"""A source that gives more than this of its target is warned of: a sequence is long beside the target."""
_MUCH_PADDING = 0.05
"""Share of the tokens of packed sequences."""
_MISSED_BY = 0.99
"""A source that gives less of its target than this is warned of."""


def plan_warnings(config: RunConfig, inputs: RunInputs, blend: BlendPlan, world_size: int) -> tuple[str, ...]:
    """Everything that a person should know before the run is paid for, a sentence each.

    Args:
        world_size: ranks of the run.
    """
    return (
        *_blend_warnings(config, blend),
        *_length_warnings(config, blend),
        *_target_warnings(blend),
        *_unread_warnings(config, blend),
        *_repeated_warnings(config, blend),
        *_packing_warnings(config, inputs),
        *shared_warnings(config, inputs),
        *_evaluation_warnings(config),
        *_budget_warnings(config, inputs),
        *_reweighting_warnings(config),
        *_folder_warnings(config),
        *_origin_warnings(inputs),
        *_layout_warnings(config, world_size),
    )


def _interval_of(config: RunConfig, name: str) -> EvalIntervalSettings:
    """The eval interval of a validation set: its own, or those of all."""
    return config.validation.sets[name].eval_interval or config.validation.eval_interval


def _blend_warnings(config: RunConfig, blend: BlendPlan) -> Iterator[str]:
    """Sources read very often, and continual pretraining without replay."""
    for row in blend.rows:
        if row.epochs > CHEAP_EPOCHS:
            yield (
                f"source {row.name} is read {row.epochs:.1f} times: beyond {CHEAP_EPOCHS} epochs repeated text is "
                f"worth clearly less than new text (arXiv:2305.16264); its {short_count(row.tokens)} tokens do what "
                f"{short_count(row.effective_unique_tokens)} new ones would."
            )
    replayed = sum(row.sequences for row in blend.rows if row.role == "replay")
    if config.model.weights == "hf" and not replayed:
        yield (
            "no source of role `replay` gives tokens: what the model knew will fade. A share of general text "
            "holds it (data.replay_ratio)."
        )


def _length_warnings(config: RunConfig, blend: BlendPlan) -> Iterator[str]:
    """A run that ends before its schedule, and phases that it does not reach."""
    steps = config.batches.whole_steps(blend.total_sequences)
    if steps < config.total_steps:
        tokens = config.tokens_at(steps)
        yield (
            f"the run stops after {steps:,} of {config.total_steps:,} steps ({short_count(tokens)} tokens), before a "
            "source passes its max_epochs; schedule and evaluations end there too."
        )
    reached = {phase.number for phase in blend.phases}
    for number, phase in enumerate(config.data.phases):
        if number not in reached:
            yield f"phase {number}, {phase.beginning}, is not reached: the run has {steps:,} steps."


def _target_warnings(blend: BlendPlan) -> Iterator[str]:
    """Sources that give clearly less, or more, than their target."""
    for stream, row in zip(blend.streams, blend.rows, strict=True):
        if stream.target is not None and row.tokens < _MISSED_BY * stream.target:
            yield (
                f"source {row.name} gives {short_count(row.tokens)} of its target of "
                f"{short_count(float(stream.target))} tokens: the run is shorter than the targets together, or weights "
                "or ratio leave it less."
            )
        elif stream.target is not None and row.tokens > _PASSED_BY * stream.target:
            yield (
                f"source {row.name} gives {short_count(row.tokens)} tokens, {row.epochs:.2f} epochs, beyond its "
                f"target of {short_count(float(stream.target))}: what is given is whole sequences. Join it with "
                "another source."
            )


def _unread_warnings(config: RunConfig, blend: BlendPlan) -> Iterator[str]:
    """Sources that have a weight and give nothing: their share of a short run is less than a sequence."""
    start = start_state(config)
    for row in blend.rows_from(start.sequences):
        if row.due_share > 0 and not row.sequences:
            due = row.due_share * (blend.total_sequences - start.sequences)
            yield (
                f"source {row.name} has a share of {percent(row.due_share)} and gives no sequence: {due:.2g} of a "
                "sequence would be its part. Train longer, give it more weight, or take it out."
            )


def _packing_warnings(config: RunConfig, inputs: RunInputs) -> Iterator[str]:
    """Conversations that see each other, are cut or lose their template, and packed sources with much padding."""
    for name, stream in inputs.sources.items():
        if stream.has_own_mask and config.data.attention == "across_documents":
            yield (
                f"source {name} holds conversations, and a sequence holds several: each sees those before it, and most "
                "are cut at its end. Set data.attention to within_documents and data.packing to best_fit."
            )
        conversations = any(manifest.loss_spans_sha256 is not None for manifest in stream.manifests)
        if conversations and not _has_chat_template(Path(config.model.hf)):
            yield (
                f"source {name} holds conversations, and {config.model.hf} has no chat template: the exports of the "
                "run will have none. Copy the one that they were prepared with there (chat_template.jinja)."
            )
        if isinstance(stream, PackedStream) and conversations and stream.cut_documents:
            yield (
                f"{stream.cut_documents:,} of the conversations of source {name} are longer than a sequence of "
                f"{stream.sequence_length:,} tokens and are cut: answers in their later parts are trained without what "
                "came before. Take a longer data.sequence_length, or prepare them with --max-length."
            )
        if isinstance(stream, PackedStream) and stream.padding_share > _MUCH_PADDING:
            yield (
                f"source {name} is packed into {stream.sequences:,} sequences, and {percent(stream.padding_share)} of "
                "their tokens are padding: its documents are about as long as a sequence. A longer "
                "data.sequence_length wastes less; the tokens of the plan are with padding."
            )


def _has_chat_template(folder: Path) -> bool:
    """Whether transformers finds a chat template in a model's folder."""
    if any((folder / name).is_file() for name in ("chat_template.jinja", "chat_template.json")):
        return True
    try:
        return bool(orjson.loads((folder / "tokenizer_config.json").read_bytes()).get("chat_template"))
    except (OSError, ValueError):
        return False


def _reweighting_warnings(config: RunConfig) -> Iterator[str]:
    """Weights by losses that begin behind the end of the run."""
    after = config.reweighted_after(start_state(config).step)
    if after is not None and after >= config.total_steps:
        yield (
            f"training.loss_reweighting begins after step {after:,}, and the run has {config.total_steps:,} steps: no "
            "sequence gets a weight. Set training.loss_reweighting.start lower."
        )


def _repeated_warnings(config: RunConfig, blend: BlendPlan) -> Iterator[str]:
    """Text that the run which wrote `init_from.checkpoint` has read, and that `init_from.load_data_position: false`
    begins again."""
    if config.init_from.checkpoint is None or config.init_from.load_data_position:
        return
    parent = find_state(Path(config.init_from.checkpoint))
    if parent is None:
        return
    read = {
        known["identity"]: parent.source_sequences.get(name, 0) * parent.order["sequence_length"]
        for name, known in parent.order["sources"].items()
    }
    for stream, row in zip(blend.streams, blend.rows, strict=True):
        tokens = read.get(stream.identity, 0)
        if row.sequences and tokens:
            yield (
                f"source {row.name} begins anew (init_from.load_data_position is false): the parent has read "
                f"{short_count(tokens)} tokens of the same text, {tokens / row.source_tokens:.2f} epochs. "
                "`init_from.load_data_position: true` goes on where that ended."
            )


def _evaluation_warnings(config: RunConfig) -> Iterator[str]:
    """Gains and gaps that nobody would see."""
    sets = config.validation.sets
    if not sets:
        yield "there are no validation sets: neither gain nor forgetting will be seen (validation.sets)."
    elif config.model.weights == "hf" and all(settings.role != "general" for settings in sets.values()):
        yield "no validation set has the role `general`: forgetting will not be seen (validation.sets)."
    without_baseline = [name for name in sets if not _interval_of(config, name).start]
    if without_baseline:
        yield (
            f"no evaluation before the first update of {', '.join(without_baseline)}: without that baseline there is "
            "no gap figure (eval_interval.start)."
        )
    sparse = [name for name in sets if _interval_of(config, name).log_spaced is None]
    if sparse:
        yield (
            f"no dense early evaluations for {', '.join(sparse)}: the stability gap is deepest in the first steps and "
            "may fall between them (eval_interval.log_spaced: 8 per decade to 1000 steps)."
        )


def _budget_warnings(config: RunConfig, inputs: RunInputs) -> Iterator[str]:
    """Validation sets that hold less than their budget."""
    for name, stream in inputs.validation_sets.items():
        budget = config.validation.sets[name].tokens
        if budget is not None and stream.tokens < budget:
            yield (
                f"validation set {name} has {short_count(stream.tokens)} of the {short_count(budget)} tokens of its "
                "budget: all of it is read at each evaluation. Hold more out (`megatron-cpt prepare --holdout`) if it "
                "is too little."
            )


def assumption_warnings(assumed: Mapping[str, int]) -> Iterator[str]:
    """What was not looked at."""
    if assumed:
        told = ", ".join(f"{name} {short_count(tokens)}" for name, tokens in assumed.items())
        yield (
            f"assumed, not read: {told} tokens. Whether files are there and whole, which tokenizer made them, which "
            "documents sources share and whether a run that has begun read these files is checked where they are."
        )


def _folder_warnings(config: RunConfig) -> Iterator[str]:
    """A model of which a part is trained, and fields of config.json that nobody reads."""
    if kind := multimodal_of(read_config(config.model.hf)):
        yield (
            f"model.hf holds a {kind.model_type}: its language model is trained, and sizes and costs are of that. All "
            "other tensors stay as they are, and exports have them."
        )
    quantization = text_fields(read_config(config.model.hf)).get("quantization_config")
    bits = "fp8" if fp8_block(quantization) else "mxfp4" if is_mxfp4(quantization) else None
    if bits is not None:
        yield (
            f"model.hf holds weights in {bits}: they are read as bf16, each times the scale of "
            "its block, and exports hold bf16."
        )
    if further := other_names(read_config(config.model.hf)).of_predictors:
        yield (
            f"model.hf: layers that predict further tokens ({further[0].removesuffix('.')}) are not trained. Where the "
            "folder has them, exports have them as they are, and their drafts get worse."
        )
    if unread := unread_fields(config.model.hf):
        proof = (
            "" if config.model.initial_loss_check.enabled else " (the initial loss check, which would prove it, is off)"
        )
        yield (
            f"model.hf: config.json has fields that neither transformers' model of this type nor this program reads: "
            f"{', '.join(unread)}. They change nothing{proof}, and exports keep them."
        )


def _layout_warnings(config: RunConfig, world_size: int) -> Iterator[str]:
    """What several GPUs would want, and is off. Processors, which train in fp32, gain nothing by it."""
    parallel = config.parallel
    if config.training.precision != "bf16":
        return
    on = gpu_layout(world_size > parallel.tensor * parallel.pipeline, parallel.tensor)
    names = ("sequence", "distributed_optimizer", "overlap_grad_reduce", "overlap_param_gather")
    if off := [f"parallel.{name}" for name in names if getattr(on, name) and not getattr(parallel, name)]:
        yield (
            f"off, though GPUs in this layout want it for memory or speed: {', '.join(off)} (`megatron-cpt init` sets "
            "what fits; `plan --search` compares)."
        )


def _origin_warnings(inputs: RunInputs) -> Iterator[str]:
    """Datasets that do not say which tokenizer made them."""
    unknown = Counter(name for name, manifest in inputs.manifests() if manifest.tokenizer is None)
    for name, count in unknown.items():
        datasets = "a dataset" if count == 1 else f"{count} datasets"
        yield f"{name}: {datasets} made elsewhere; whether the model's tokenizer made them cannot be checked."
