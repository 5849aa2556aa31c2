"""What works and looks unwise."""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from megatron_cpt.config.schema import MarksSettings, RunConfig
from megatron_cpt.families.shape import unread_fields
from megatron_cpt.mixture.plan import BlendPlan
from megatron_cpt.mixture.repetition import CHEAP_EPOCHS
from megatron_cpt.planning.inputs import RunInputs
from megatron_cpt.planning.shared_text import shared_warnings
from megatron_cpt.planning.start_state import position_of, start_state
from megatron_cpt.planning.text import percent, quantity

PASSED_BY = 1.1
"""A source that gives more than this of its target is named: a sequence is long beside it."""
MISSED_BY = 0.99
"""A source that gives less of its target than this is named."""


def plan_warnings(config: RunConfig, inputs: RunInputs, blend: BlendPlan) -> tuple[str, ...]:
    """Everything that a person should know before the run is paid for, a sentence each."""
    return (
        *blend_warnings(config, blend),
        *length_warnings(config, blend),
        *target_warnings(blend),
        *unread_warnings(config, blend),
        *repeated_warnings(config, blend),
        *shared_warnings(config, inputs),
        *evaluation_warnings(config),
        *budget_warnings(config, inputs),
        *folder_warnings(config),
        *origin_warnings(inputs),
    )


def marks_of(config: RunConfig, name: str) -> MarksSettings:
    """The marks of a validation set: its own, or those of all."""
    return config.validation.sets[name].marks or config.validation.marks


def blend_warnings(config: RunConfig, blend: BlendPlan) -> Iterator[str]:
    """Sources read very often, and continual pretraining without replay."""
    for row in blend.rows:
        if row.epochs > CHEAP_EPOCHS:
            yield (
                f"source {row.name} is read {row.epochs:.1f} times: beyond {CHEAP_EPOCHS} epochs repeated text is "
                f"worth clearly less than new text (arXiv:2305.16264); its {quantity(row.tokens)} tokens do what "
                f"{quantity(row.effective_unique_tokens)} new ones would."
            )
    replayed = sum(row.sequences for row in blend.rows if row.role == "replay")
    if config.model.weights == "hf" and not replayed:
        yield (
            "no source of role `replay` gives tokens: what the model knew will fade. A share of general text "
            "holds it (data.replay_ratio)."
        )


def length_warnings(config: RunConfig, blend: BlendPlan) -> Iterator[str]:
    """A run that ends before its schedule, and phases that it does not reach."""
    steps = config.batches.whole_steps(blend.total_sequences)
    if steps < config.total_steps:
        tokens = config.token_batches.total(steps)
        yield (
            f"the run stops after {steps:,} of {config.total_steps:,} steps ({quantity(tokens)} tokens), before a "
            "source passes its max_epochs; schedule and marks end there too."
        )
    reached = {phase.number for phase in blend.phases}
    for number, phase in enumerate(config.data.phases):
        if number not in reached:
            yield f"phase {number}, {phase.beginning}, is not reached: the run has {steps:,} steps."


def target_warnings(blend: BlendPlan) -> Iterator[str]:
    """Sources that give clearly less, or more, than their target."""
    for stream, row in zip(blend.streams, blend.rows, strict=True):
        if stream.target is not None and row.tokens < MISSED_BY * stream.target:
            yield (
                f"source {row.name} gives {quantity(row.tokens)} of its target of {quantity(float(stream.target))} "
                "tokens: the run is shorter than the targets together, or weights or ratio leave it less."
            )
        elif stream.target is not None and row.tokens > PASSED_BY * stream.target:
            yield (
                f"source {row.name} gives {quantity(row.tokens)} tokens, {row.epochs:.2f} epochs, beyond its target of "
                f"{quantity(float(stream.target))}: what is given is whole sequences. Join it with another source."
            )


def unread_warnings(config: RunConfig, blend: BlendPlan) -> Iterator[str]:
    """Sources that have a weight and give nothing: their share of a short run is less than a sequence."""
    start = start_state(config)
    for row in blend.rows_from(start.sequences):
        if row.due_share > 0 and not row.sequences:
            due = row.due_share * (blend.total_sequences - start.sequences)
            yield (
                f"source {row.name} has a share of {percent(row.due_share)} and gives no sequence: {due:.2g} of a "
                "sequence would be its part. Train longer, give it more weight, or take it out."
            )


def repeated_warnings(config: RunConfig, blend: BlendPlan) -> Iterator[str]:
    """Text that the run which wrote `start.checkpoint` has read, and that `start.data: new` begins again."""
    if config.start.checkpoint is None or config.start.data == "kept":
        return
    position = position_of(Path(config.start.checkpoint))
    sources = position.get("order", {}).get("sources", {})
    read = {
        known["identity"]: position["source_sequences"].get(name, 0) * position["order"]["sequence_length"]
        for name, known in sources.items()
    }
    for stream, row in zip(blend.streams, blend.rows, strict=True):
        tokens = read.get(stream.identity, 0)
        if row.sequences and tokens:
            yield (
                f"source {row.name} begins anew (start.data is new): the parent has read {quantity(tokens)} tokens of "
                f"the same text, {tokens / row.source_tokens:.2f} epochs. `start.data: kept` goes on where that ended."
            )


def evaluation_warnings(config: RunConfig) -> Iterator[str]:
    """Gains and gaps that nobody would see."""
    sets = config.validation.sets
    if not sets:
        yield "there are no validation sets: neither gain nor forgetting will be seen (validation.sets)."
    elif config.model.weights == "hf" and all(settings.role != "replay" for settings in sets.values()):
        yield "no validation set has the role `replay`: forgetting will not be seen (validation.sets)."
    without_baseline = [name for name in sets if not marks_of(config, name).start]
    if without_baseline:
        yield (
            f"no evaluation before the first update of {', '.join(without_baseline)}: without that baseline there is "
            "no gap figure (marks.start)."
        )
    sparse = [name for name in sets if marks_of(config, name).log is None]
    if sparse:
        yield (
            f"no dense early marks for {', '.join(sparse)}: the stability gap is deepest in the first steps and may "
            "fall between marks (marks.log: 8 per decade to 1000 steps)."
        )


def budget_warnings(config: RunConfig, inputs: RunInputs) -> Iterator[str]:
    """Validation sets that hold less than their budget."""
    for name, stream in inputs.validation_sets.items():
        budget = config.validation.sets[name].tokens
        if budget is not None and stream.tokens < budget:
            yield (
                f"validation set {name} has {quantity(stream.tokens)} of the {quantity(budget)} tokens of its budget: "
                "all of it is read at each mark. Hold more out (`megatron-cpt prepare --holdout`) if it is too little."
            )


def folder_warnings(config: RunConfig) -> Iterator[str]:
    """Fields of config.json that nobody reads."""
    if unread := unread_fields(config.model.hf):
        proof = "" if config.model.start_check.enabled else " (the start check, which would prove it, is off)"
        yield (
            f"model.hf: config.json has fields that neither transformers' model of this type nor this program reads: "
            f"{', '.join(unread)}. They change nothing{proof}, and exports keep them."
        )


def origin_warnings(inputs: RunInputs) -> Iterator[str]:
    """Datasets that do not say which tokenizer made them."""
    unknown = Counter(name for name, manifest in inputs.manifests() if manifest.tokenizer is None)
    for name, count in unknown.items():
        datasets = "a dataset" if count == 1 else f"{count} datasets"
        yield f"{name}: {datasets} made elsewhere; whether the model's tokenizer made them cannot be checked."
