"""The phases of a run as lines of text: the shares of sources, or of roles where there are many sources."""

from fractions import Fraction

from megatron_cpt.mixture.plan import BlendPlan
from megatron_cpt.planning.text import columns, percent, quantity

SOURCES_SHOWN = 6
"""With more sources the table has a column for each role."""

PHASES_SHOWN = 20
"""A longer list is shown by its beginning; plan.json has all of it."""


def phase_lines(blend: BlendPlan, first_sequence: int = 0) -> list[str]:
    """A heading and a line for each phase that is not over before a sequence.

    It says where it begins, what it gives to whom and which sources are exhausted.
    """
    labels = blend.sources if len(blend.sources) <= SOURCES_SHOWN else blend.roles
    names = tuple(dict.fromkeys(labels))
    rows = []
    over = sum(phase.first_sequence <= first_sequence for phase in blend.phases[1:])
    phases = blend.phases[over:]
    for phase in phases[:PHASES_SHOWN]:
        given = dict.fromkeys(names, Fraction(0))
        for label, share in zip(labels, phase.shares, strict=True):
            given[label] += share
        tokens = quantity(phase.first_sequence * blend.order.sequence_length)
        rows.append([tokens, *(percent(float(share)) for share in given.values()), ", ".join(phase.exhausted)])
    lines = columns([["from tokens", *names, "at max_epochs"], *rows], "r" * (len(names) + 1) + "l")
    hidden = len(phases) - PHASES_SHOWN
    return [*lines, f"... and {hidden} more"] if hidden > 0 else lines
