"""What is wrong with the sources, shares and phases of a configuration, told without a file."""

from collections.abc import Iterator
from difflib import get_close_matches

from megatron_cpt.config.blend import DataSettings
from megatron_cpt.config.errors import Fault
from megatron_cpt.config.names import name_faults, path_faults
from megatron_cpt.config.schema import RunConfig


def source_faults(config: RunConfig) -> Iterator[Fault]:
    """Training sources that are missing, wrongly named or without paths."""
    sources = config.data.sources
    if not sources:
        yield Fault("data.sources is empty", "a run needs text.", "Name at least one source and its `paths`.")
    yield from name_faults("data.sources", sources)
    for name, source in sources.items():
        yield from path_faults(f"data.sources.{name}.paths", source.paths)


def phase_faults(config: RunConfig) -> Iterator[Fault]:
    """Phases that do not follow each other from the beginning of the run, or that name no source."""
    data, before = config.data, -1
    for number, phase in enumerate(data.phases):
        shown = f"data.phases.{number}.from_tokens = {phase.from_tokens}"
        first = phase.first_step(config.tokens_per_step)
        if number == 0 and first:
            rule = "the first phase begins with the run."
            yield Fault(shown, rule, "Set it to 0, or put a phase from 0 before it.")
        elif first <= before:
            rule = f"it begins at step {first}, and the phase before it at step {before}: each lasts at least one step."
            yield Fault(shown, rule, "List the phases in the order of training.")
        before = first
        for name in phase.weights:
            if name not in data.sources:
                close = get_close_matches(name, data.sources, n=1) or list(data.sources)[:1]
                remedy = f"The nearest is `{close[0]}`." if close else "Name it under `data.sources`."
                yield Fault(f"data.phases.{number}.weights.{name}", "there is no such source.", remedy)


def share_faults(data: DataSettings) -> Iterator[Fault]:
    """Weights and a replay ratio that do not say how the sources share the run, or a phase of it."""
    if not data.phases:
        yield from _share_faults(data, "data")
    for number, phase in enumerate(data.phases):
        yield from _share_faults(data.in_phase(phase), f"data.phases.{number}")


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
