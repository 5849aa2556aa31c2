"""The ASCII chart of a blend shows what the order gives."""

from megatron_cpt.config.schema import DataSettings, PhaseSettings, SourceSettings
from megatron_cpt.config.units import Duration
from megatron_cpt.mixture.blend import BlendPlan, plan_blend
from megatron_cpt.mixture.phases import blend_streams
from megatron_cpt.planning.text_tables import picture_lines


def blend_of(phases: list[PhaseSettings], **weights: float) -> BlendPlan:
    sources = {name: SourceSettings(paths=[name], weight=weight) for name, weight in weights.items()}
    data = DataSettings(sequence_length=1, sources=sources, phases=phases)
    return plan_blend(data, blend_streams(data, dict.fromkeys(sources, 10**6)), 4800, seed=1)


def test_a_switch_is_seen_where_it_is() -> None:
    switch = PhaseSettings(from_tokens=Duration(1200), weights={"a": 1, "long": 3})
    assert picture_lines(blend_of([PhaseSettings(from_tokens=Duration(0)), switch], a=1, long=0)) == [
        f"a     |{'█' * 12}{'▂' * 36}|  100.00 % to 25.00 %",
        f"long  |{' ' * 12}{'▆' * 36}|    0.00 % to 75.00 %",
    ]


def test_a_short_run_of_one_blend_shows_its_share_and_no_sequence_alone() -> None:
    sources = {name: SourceSettings(paths=[name], weight=weight) for name, weight in {"a": 7, "b": 3}.items()}
    data = DataSettings(sequence_length=1, sources=sources)
    lines = picture_lines(plan_blend(data, blend_streams(data, dict.fromkeys(sources, 10**6)), 48, seed=1))
    assert [line.rpartition("|")[2].split("  ")[-1].strip() for line in lines] == ["70.00 %", "30.00 %"]
    assert all(
        line.count("|") == 2 and len(line.split("|")[1]) == 6 and " " not in line.split("|")[1] for line in lines
    )


def test_many_sources_are_shown_by_those_that_give_most() -> None:
    lines = picture_lines(blend_of([], **{f"s{number}": number for number in range(40)}))
    assert len(lines) == 12
    assert lines[0].startswith("s29")
    assert lines[-1].startswith("29 others")
    assert lines[-1].endswith("%")
