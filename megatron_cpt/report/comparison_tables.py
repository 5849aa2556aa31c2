"""Tables that compare runs: arms over seeds, differences between arms, rises beside a control."""

from collections.abc import Mapping, Sequence
from html import escape

from megatron_cpt.gap.arms import Arm, ArmSet, Spread
from megatron_cpt.gap.control import ControlSplit, SplitRise
from megatron_cpt.gap.differences import ArmDifference
from megatron_cpt.gap.summary import short_count
from megatron_cpt.report.figures import set_title
from megatron_cpt.report.tables import MINUS, group_row, number, table, with_error

UNTESTED = '<span class="missing">not testable</span>'
ARM_COLUMNS = (
    ("Baseline", "nats/token"),
    ("Largest rise", "nats/token"),
    ("reached at", "tokens"),
    ("of it transient", "nats/token"),
    ("End minus baseline", "nats/token"),
    ("Recovered", "runs"),
    ("Recovered at", "tokens"),
    ("Area of the rise", "nats/token · tokens"),
)
SPLIT_COLUMNS = (
    ("At", ""),
    ("Tokens", ""),
    ("Rise", "nats/token"),
    ("Re-warming", "nats/token"),
    ("Shift", "nats/token ± SE"),
    ("Significant shift", "family-wise 5 %"),
)
DIFFERENCE_COLUMNS = (
    ("Arms", "second minus first"),
    ("Difference", "± SE over seeds"),
    ("p", "this pair"),
    ("p", "Holm"),
    ("Beyond the seeds", "family-wise 5 %"),
)
FIGURE_NAMES = {
    "depth": "largest rise",
    "final": "end minus baseline",
    "transient": "transient part",
    "area": "area of the rise",
}


def arm_table(arms: Sequence[Arm]) -> str:
    """Mean and standard deviation of the gap figures of every arm, set by set."""
    rows = []
    for name in dict.fromkeys(name for arm in arms for name in arm.sets):
        having = [arm for arm in arms if name in arm.sets]
        rows.append(group_row(set_title(having[0].sets[name].role, name), len(ARM_COLUMNS) + 1))
        rows += [_arm_row(arm, arm.sets[name]) for arm in having]
    return table("<th>Arm</th>" + _headers(ARM_COLUMNS), rows)


def difference_table(differences: Sequence[ArmDifference]) -> str:
    """Every two arms, figure by figure."""
    rows, group = [], ""
    for item in differences:
        title = f"{item.set}: {FIGURE_NAMES[item.figure]}"
        if title != group:
            rows.append(group_row(title, len(DIFFERENCE_COLUMNS)))
            group = title
        shown = _signed_area if item.figure == "area" else with_error
        rows.append(
            f"<tr><td class='words'>{escape(item.arms[1])} against {escape(item.arms[0])}</td>"
            f"<td>{shown(item.difference, item.standard_error)}</td>"
            + "".join(f"<td>{_p_value(p)}</td>" for p in (item.p_value, item.adjusted_p_value))
            + f"<td>{UNTESTED if item.significant is None else 'yes' if item.significant else 'no'}</td></tr>"
        )
    return table(_headers(DIFFERENCE_COLUMNS), rows)


def split_table(splits: Mapping[str, Mapping[str, ControlSplit]]) -> str:
    """The rise of every run on every general set, split by the control."""
    rows = []
    for name in dict.fromkeys(name for sets in splits.values() for name in sets):
        rows.append(group_row(set_title("replay", name), len(SPLIT_COLUMNS) + 1))
        for run, sets in splits.items():
            if name in sets:
                rows += _split_rows(run, sets[name])
    return table("<th>Run</th>" + _headers(SPLIT_COLUMNS), rows)


def _arm_row(arm: Arm, measured: ArmSet) -> str:
    seeds = ", ".join("unknown" if seed is None else str(seed) for seed in arm.seeds)
    name = f"<td class='words'>{escape(arm.name)} <span class='error'>({len(arm.runs)}: {escape(seeds)})</span></td>"
    if measured.missing is not None:
        return f"<tr>{name}<td colspan='{len(ARM_COLUMNS)}' class='words missing'>{escape(measured.missing)}</td></tr>"
    figures = measured.figures
    cells = [
        _mean(figures["baseline"], "{:.4f}"),
        with_error(figures["depth"].mean, figures["depth"].sd),
        _tokens(figures["depth_tokens"]),
        _mean(figures["transient"], "{:.4f}"),
        with_error(figures["final"].mean, figures["final"].sd),
        f"{measured.recovery['recovered']} of {len(arm.runs) - measured.recovery['not_needed']}",
        _tokens(figures["recovery_tokens"]),
        _tokens(figures["area"]),
    ]
    return f"<tr>{name}" + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>"


def _p_value(value: float | None) -> str:
    return UNTESTED if value is None else f"{value:.3g}"


def _mean(figure: Spread, form: str) -> str:
    margin = "" if figure.sd is None else f' <span class="error">± {form.format(figure.sd)}</span>'
    return number(figure.mean, form) + margin


def _tokens(figure: Spread) -> str:
    if figure.mean is None:
        return '<span class="missing">none</span>'
    margin = "" if figure.sd is None else f' <span class="error">± {short_count(figure.sd)}</span>'
    return short_count(figure.mean) + margin


def _signed_area(value: float, error: float | None) -> str:
    """An area in nats times tokens, in three digits like those of the arms."""
    margin = "" if error is None else f' <span class="error">± {short_count(error)}</span>'
    return f"{'+' if value >= 0 else MINUS}{short_count(abs(value))}{margin}"


def _split_rows(run: str, split: ControlSplit) -> list[str]:
    name = f"<td class='words'>{escape(run)}</td>"
    if split.missing is not None:
        return [f"<tr>{name}<td colspan='{len(SPLIT_COLUMNS)}' class='words missing'>{escape(split.missing)}</td></tr>"]
    marks = {"largest rise": split.depth, "largest shift": split.largest_shift, "end": split.final}
    judged = UNTESTED
    if split.p_value is not None:
        judged = f'{"yes" if split.significant else "no"} <span class="error">p = {split.p_value:.3g}</span>'
    return [_split_row(name, words, rise, judged) for words, rise in marks.items() if rise is not None]


def _split_row(name: str, words: str, rise: SplitRise, judged: str) -> str:
    # The test is of a shift at any mark, so it stands beside the largest.
    cells = [
        words,
        short_count(rise.tokens),
        number(rise.rise, "{:+.4f}"),
        number(rise.rewarming, "{:+.4f}"),
        with_error(rise.shift, rise.shift_standard_error),
        judged if words == "largest shift" else "",
    ]
    return f"<tr>{name}" + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>"


def _headers(columns: Sequence[tuple[str, str]]) -> str:
    return "".join(f"<th>{name}<small>{unit}</small></th>" for name, unit in columns)
