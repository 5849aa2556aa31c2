"""Rules on training sources, their shares and quality weights, and phases."""

from collections.abc import Iterator
from difflib import get_close_matches
from itertools import pairwise

from megatron_cpt.config.errors import Fault
from megatron_cpt.config.schedule import phase_steps
from megatron_cpt.config.schema import (
    DataSettings,
    QualitySettings,
    RunConfig,
    SourceSettings,
    name_faults,
    path_faults,
)
from megatron_cpt.config.units import epochs_of_source


def source_faults(config: RunConfig) -> Iterator[Fault]:
    """Training sources that are missing, wrongly named, without paths or with settings at odds."""
    sources = config.data.sources
    if not sources:
        yield Fault("data.sources is empty", "a run needs text.", "Name at least one source and its `paths`.")
    yield from name_faults("data.sources", sources)
    if config.data.packing is not None and config.data.attention != "within_documents":
        rule = "documents that are packed into a sequence would see each other."
        yield Fault(f"data.packing = {config.data.packing}", rule, "Set data.attention: within_documents.")
    if config.data.packing is not None and config.data.sequence_length == 1:
        rule = "a sequence of one token holds no label of its document."
        yield Fault("data.sequence_length = 1 with data.packing", rule, "Take longer sequences.")
    for name, source in sources.items():
        yield from path_faults(f"data.sources.{name}.paths", source.paths)
        yield from _target_faults(f"data.sources.{name}", source)
        yield from _loss_weight_faults(f"data.sources.{name}", source)
        if source.quality is not None:
            yield from _quality_faults(f"data.sources.{name}.quality", source.quality)
        if source.sample_per_epoch is not None:
            yield from _draw_faults(f"data.sources.{name}.sample_per_epoch", source, config.data.sequence_length)
    yield from _mixed_target_faults(config.data)


_LARGEST_LOSS_WEIGHT = 1e6
"""A larger one is a mistake: near 1e30 the norm of fp32 gradients becomes infinite."""


def _loss_weight_faults(where: str, source: SourceSettings) -> Iterator[Fault]:
    if source.loss_weight > _LARGEST_LOSS_WEIGHT:
        rule = f"is a factor of losses, at most {_LARGEST_LOSS_WEIGHT:,.0f}."
        remedy = "Give the other sources less: weights count against each other."
        yield Fault(f"{where}.loss_weight = {source.loss_weight:g}", rule, remedy)


def phase_faults(config: RunConfig) -> Iterator[Fault]:
    """Phases that do not follow each other from the beginning of the run, or that name no source."""
    before = -1
    for number, (phase, first) in enumerate(zip(config.data.phases, phase_steps(config), strict=True)):
        where = f"data.phases.{number}"
        yield from _beginning_faults(config, number, first, before)
        before = before if first is None else first
        if phase.ramp and number == 0:
            yield Fault(f"{where}.ramp = {phase.ramp}", "there is no phase before the first.", "Take it out.")
        for name in phase.weights:
            if name not in config.data.sources:
                yield _unknown_source(f"{where}.weights.{name}", name, config.data)


def share_faults(data: DataSettings) -> Iterator[Fault]:
    """Weights and a replay ratio that do not say how the sources share the run, or a phase of it."""
    if not data.phases:
        yield from _share_faults(data, "data")
    for number, phase in enumerate(data.phases):
        yield from _share_faults(data.in_phase(phase), f"data.phases.{number}")


def _beginning_faults(config: RunConfig, number: int, first: int | None, before: int) -> Iterator[Fault]:
    """`first` and `before`: steps before this phase and before the one before, -1 where there is none."""
    phase = config.data.phases[number]
    shown = f"data.phases.{number}.{phase.beginning}"
    ways = [way for way in (phase.from_tokens, phase.from_lr, phase.from_epoch) if way is not None]
    if len(ways) != 1:
        rule = "a phase begins at one of `from_tokens`, `from_lr` and `from_epoch`."
        yield Fault(shown.rstrip("."), rule, "Give it one of them.")
    elif number == 0 and (phase.from_tokens is None or first):
        yield Fault(shown, "the first phase begins with the run.", "Set it to 0, or put a phase from 0 before it.")
    elif first is not None and first <= before:
        rule = f"it begins at step {first}, and the phase before it at step {before}: each lasts at least one step."
        yield Fault(shown, rule, "List the phases in the order of training.")
    if phase.from_lr is not None:
        yield from _rate_faults(config, shown, first)
    if phase.from_epoch is not None and epochs_of_source(phase.from_epoch)[1] not in config.data.sources:
        yield _unknown_source(shown, epochs_of_source(phase.from_epoch)[1], config.data)


def _rate_faults(config: RunConfig, shown: str, first: int | None) -> Iterator[Fault]:
    if config.data.when_exhausted == "stop":
        rule = (
            "where a run stops by data.when_exhausted = stop its schedule ends too, so that this rate and that end "
            "would depend on each other."
        )
        yield Fault(shown, rule, "Use `from_tokens`, or set training.tokens to the length meant.")
    elif first is not None and first >= config.total_steps:
        final = f"schedule.kind = {config.schedule.kind}, schedule.final_lr = {config.schedule.final_lr:g}"
        yield Fault(shown, f"the learning rate never falls to it ({final}).", "Raise the share, or lower the final.")


def _unknown_source(shown: str, name: str, data: DataSettings) -> Fault:
    close = get_close_matches(name, data.sources, n=1) or list(data.sources)[:1]
    remedy = f"The nearest is `{close[0]}`." if close else "Name it under `data.sources`."
    return Fault(shown, "there is no such source.", remedy)


def _target_faults(where: str, source: SourceSettings) -> Iterator[Fault]:
    targets = {
        "tokens": source.tokens,
        "epochs": source.epochs,
        "quality.epochs": source.quality and source.quality.epochs,
    }
    given = [f"{name} = {value}" for name, value in targets.items() if value is not None]
    if len(given) > 1:
        yield Fault(f"{where}: {', '.join(given)}", "are targets, and a source has one.", "Keep one of them.")


def _mixed_target_faults(data: DataSettings) -> Iterator[Fault]:
    """A weight says nothing beside a number of tokens."""
    by_role = data.replay_ratio is not None or any(phase.replay_ratio is not None for phase in data.phases)
    for role in ("domain", "replay") if by_role else ("all",):
        members = {name: source for name, source in data.sources.items() if role in ("all", source.role)}
        without = [name for name, source in members.items() if source.weight and not source.has_target]
        if without and len(without) < sum(bool(source.weight) for source in members.values()):
            whose = "the run" if role == "all" else f"role `{role}`"
            yield Fault(
                f"data.sources: {', '.join(without)} without a target",
                f"other sources of {whose} have targets in tokens or epochs, beside which a weight means nothing.",
                "Give each of them `tokens` or `epochs`, or none.",
            )


def _quality_faults(where: str, quality: QualitySettings) -> Iterator[Fault]:
    bounds = quality.buckets
    if bounds[:1] != [0] or bounds[-1:] != [1] or any(low >= high for low, high in pairwise(bounds)):
        yield Fault(f"{where}.buckets = {bounds}", "bounds rise from 0 to 1.", "Write them as [0, 0.1, 0.5, 1].")
    if not quality.score.strip():
        yield Fault(f"{where}.score = '{quality.score}'", "a score has a name.", "Name it as `score --by` did.")
    curves = {"epochs": quality.epochs, "shares": quality.shares, "temperature": quality.temperature}
    given = {name: value for name, value in curves.items() if value is not None}
    if len(given) != 1:
        shown = f"{where}: {', '.join(given) or 'no curve'}"
        yield Fault(shown, "one of `epochs`, `shares` and `temperature` says what buckets give.", "Give one of them.")
    for name, values in given.items():
        if not isinstance(values, list):
            continue
        if len(values) != len(bounds) - 1:
            rule = f"there are {len(bounds) - 1} buckets and {len(values)} values."
            yield Fault(f"{where}.{name} = {values}", rule, "Give one for each bucket, the best first.")
        if not any(values):
            yield Fault(f"{where}.{name} = {values}", "every bucket is dropped.", "Give one more than 0.")


def _draw_faults(where: str, source: SourceSettings, sequence_length: int) -> Iterator[Fault]:
    assert source.sample_per_epoch is not None
    shown = f"{where}.tokens = {source.sample_per_epoch.tokens}"
    if source.sample_per_epoch.tokens < sequence_length:
        yield Fault(shown, f"a draw holds at least one sequence of {sequence_length} tokens.", "Raise it.")
    if source.quality is not None:
        rule = "buckets of a source are read in epochs of their own, not in draws."
        yield Fault(shown, rule, "Draw from a selection (`megatron-cpt select`), or take `quality` out.")


def _share_faults(data: DataSettings, section: str) -> Iterator[Fault]:
    sources, ratio = data.sources, data.replay_ratio
    if not sources:
        return
    if ratio is None:
        if not any(source.weight for source in sources.values()):
            shown = "data.sources" if section == "data" else section
            yield Fault(f"{shown}: all weights are 0", "nothing would be read.", "Give one a weight.")
        return
    shown = f"{section}.replay_ratio = {ratio:g}"
    for role, share in (("replay", ratio), ("domain", 1 - ratio)):
        members = [source for source in sources.values() if source.role == role]
        weighted = [name for name, source in sources.items() if source.role == role and source.weight]
        if share and not members:
            rule = f"it gives {share:.4g} of the tokens to `{role}` sources, and there are none."
            yield Fault(shown, rule, f"Give a source `role: {role}`, or take the ratio out.")
        elif share and not weighted:
            rule = f"it gives {share:.4g} of the tokens to `{role}` sources, whose weights are all 0."
            yield Fault(shown, rule, f"Give a `{role}` source a weight, or take the ratio out.")
