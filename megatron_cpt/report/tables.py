"""The tables of the report, as HTML. Text from data is escaped here; what is missing says so."""

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

import numpy as np

from megatron_cpt.gap.compare import Arm, ArmDifference, ArmSet, ControlSplit, SplitRise, Spread
from megatron_cpt.gap.figures import FLIPS, GapFigures, Recovery
from megatron_cpt.gap.summary import changed_words, count_words, not_finite_words
from megatron_cpt.report.figures import RunCurve, set_title
from megatron_cpt.report.html import MISSING
from megatron_cpt.report.read import ReportedRun, TrainingHistory

_UNTESTED = '<span class="missing">not testable</span>'
_ARM_COLUMNS = (
    ("Baseline", "nats/token"),
    ("Largest rise", "nats/token"),
    ("reached at", "tokens"),
    ("of it transient", "nats/token"),
    ("End minus baseline", "nats/token"),
    ("Recovered", "runs"),
    ("Recovered at", "tokens"),
    ("Area of the rise", "nats/token · tokens"),
)
_SPLIT_COLUMNS = (
    ("At", ""),
    ("Tokens", ""),
    ("Rise", "nats/token"),
    ("Re-warming", "nats/token"),
    ("Shift", "nats/token ± SE"),
    ("Significant shift", "family-wise 5 %"),
)
_DIFFERENCE_COLUMNS = (
    ("Arms", "second minus first"),
    ("Difference", "± SE over seeds"),
    ("p", "this pair"),
    ("p", "Holm"),
    ("Beyond the seeds", "family-wise 5 %"),
)
_FIGURE_NAMES = {
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
        rows.append(group_row(set_title(having[0].sets[name].role, name), len(_ARM_COLUMNS) + 1))
        rows += [_arm_row(arm, arm.sets[name]) for arm in having]
    return table("<th>Arm</th>" + _headers(_ARM_COLUMNS), rows)


def difference_table(differences: Sequence[ArmDifference]) -> str:
    """Every two arms, figure by figure."""
    rows, group = [], ""
    for item in differences:
        title = f"{item.set}: {_FIGURE_NAMES[item.figure]}"
        if title != group:
            rows.append(group_row(title, len(_DIFFERENCE_COLUMNS)))
            group = title
        shown = _signed_area if item.figure == "area" else with_error
        rows.append(
            f"<tr><td class='words'>{escape(item.arms[1])} against {escape(item.arms[0])}</td>"
            f"<td>{shown(item.difference, item.standard_error)}</td>"
            + "".join(f"<td>{_p_value(p)}</td>" for p in (item.p_value, item.adjusted_p_value))
            + f"<td>{_UNTESTED if item.significant is None else 'yes' if item.significant else 'no'}</td></tr>"
        )
    return table(_headers(_DIFFERENCE_COLUMNS), rows)


def split_table(splits: Mapping[str, Mapping[str, ControlSplit]]) -> str:
    """The rise of every run on every general set, split by the control."""
    rows = []
    for name in dict.fromkeys(name for sets in splits.values() for name in sets):
        rows.append(group_row(set_title("general", name), len(_SPLIT_COLUMNS) + 1))
        for run, sets in splits.items():
            if name in sets:
                rows += _split_rows(run, sets[name])
    return table("<th>Run</th>" + _headers(_SPLIT_COLUMNS), rows)


def _arm_row(arm: Arm, measured: ArmSet) -> str:
    seeds = ", ".join("unknown" if seed is None else str(seed) for seed in arm.seeds)
    name = f"<td class='words'>{escape(arm.name)} <span class='error'>({len(arm.runs)}: {escape(seeds)})</span></td>"
    if measured.missing is not None:
        return f"<tr>{name}<td colspan='{len(_ARM_COLUMNS)}' class='words missing'>{escape(measured.missing)}</td></tr>"
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
    return _UNTESTED if value is None else f"{value:.3g}"


def _mean(figure: Spread, form: str) -> str:
    margin = "" if figure.sd is None else f' <span class="error">± {form.format(figure.sd)}</span>'
    return number(figure.mean, form) + margin


def _tokens(figure: Spread) -> str:
    if figure.mean is None:
        return '<span class="missing">none</span>'
    margin = "" if figure.sd is None else f' <span class="error">± {count_words(figure.sd)}</span>'
    return count_words(figure.mean) + margin


def _signed_area(value: float, error: float | None) -> str:
    """An area in nats times tokens, in three digits like those of the arms."""
    margin = "" if error is None else f' <span class="error">± {count_words(error)}</span>'
    return f"{'+' if value >= 0 else MINUS}{count_words(abs(value))}{margin}"


def _split_rows(run: str, split: ControlSplit) -> list[str]:
    name = f"<td class='words'>{escape(run)}</td>"
    if split.missing is not None:
        return [
            f"<tr>{name}<td colspan='{len(_SPLIT_COLUMNS)}' class='words missing'>{escape(split.missing)}</td></tr>"
        ]
    rises = {"largest rise": split.depth, "largest shift": split.largest_shift, "end": split.final}
    judged = _UNTESTED
    if split.p_value is not None:
        judged = f'{"yes" if split.significant else "no"} <span class="error">p = {split.p_value:.3g}</span>'
    return [_split_row(name, words, rise, judged) for words, rise in rises.items() if rise is not None]


def _split_row(name: str, words: str, rise: SplitRise, judged: str) -> str:
    # The test is of a shift at any evaluation, so it stands beside the largest.
    cells = [
        words,
        count_words(rise.tokens),
        number(rise.rise, "{:+.4f}"),
        number(rise.rewarming, "{:+.4f}"),
        with_error(rise.shift, rise.shift_standard_error),
        judged if words == "largest shift" else "",
    ]
    return f"<tr>{name}" + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>"


def _headers(columns: Sequence[tuple[str, str]]) -> str:
    return "".join(f"<th>{name}<small>{unit}</small></th>" for name, unit in columns)


MINUS = "\N{MINUS SIGN}"

_LONGEST_LIST = 60
"""Items of a list in plan.json that are shown."""

_GAP_COLUMNS = (
    ("Baseline", "nats/token"),
    ("Largest rise", "nats/token ± SE"),
    ("reached at", "tokens"),
    ("of it transient", "nats/token"),
    ("First rise that came back", "nats/token"),
    ("End minus baseline", "nats/token ± SE"),
    ("Recovered at", "tokens"),
    ("Area of the rise", "nats/token · tokens"),
    ("Significant rise", "family-wise 5 %"),
)


def gap_table(by_set: Mapping[tuple[str, str], Sequence[RunCurve]], runs: Sequence[ReportedRun]) -> str:
    """The gap figures of every run, set by set."""
    headers = "".join(f"<th>{name}<small>{unit}</small></th>" for name, unit in _GAP_COLUMNS)
    rows = []
    for (role, name), curves in by_set.items():
        rows.append(group_row(set_title(role, name), len(_GAP_COLUMNS) + 1))
        rows += [_gap_row(runs[item.index].name, item.gap) for item in curves]
    return table(f"<th>Run</th>{headers}", rows)


def mixture_table(history: TrainingHistory) -> str:
    """Tokens, share and epochs of each source up to the last training record."""
    last = [(name, source.tokens[-1], source.epochs[-1]) for name, source in history.sources.items()]
    total = np.nansum([tokens for _, tokens, _ in last])
    rows = [
        f"<tr><td class='words'>{escape(name)}</td><td>{number(tokens, '{:,.0f}')}</td>"
        f"<td>{number(100 * tokens / total if total else np.nan, '{:.2f} %')}</td>"
        f"<td>{number(epochs, '{:.3f}')}</td></tr>"
        for name, tokens, epochs in last
    ]
    return table("<th>Source</th><th>Tokens read</th><th>Share</th><th>Epochs</th>", rows)


def plan_tables(plan: Mapping[str, Any]) -> str:
    """plan.json as it is: plain values in one table, by dotted names; each list of objects in its own."""
    values = flattened(plan)
    plain = [
        f"<tr><td>{escape(name)}</td><td class='words'>{plain_value(value)}</td></tr>"
        for name, value in values.items()
        if not _is_rows(value)
    ]
    first = table("<th>Plan</th><th class='words'>Value</th>", plain) if plain else ""
    return first + "".join(_object_table(name, value) for name, value in values.items() if _is_rows(value))


def _gap_row(run: str, gap: GapFigures) -> str:
    changed = "" if gap.changed_tokens is None else f"<small>{changed_words(gap.changed_tokens)}</small>"
    if gap.not_finite is not None and gap.missing is None:
        changed += f"<small>{not_finite_words(gap.not_finite)}</small>"
    name = f"<td class='words'>{escape(run)}{changed}</td>"
    if gap.missing is not None:
        return f"<tr>{name}<td colspan='{len(_GAP_COLUMNS)}' class='words missing'>{escape(gap.missing)}</td></tr>"
    cells = [
        number(gap.baseline, "{:.4f}"),
        with_error(gap.depth, gap.depth_standard_error),
        count_words(gap.depth_tokens),
        number(gap.transient, "{:.4f}"),
        "none" if gap.first_rise is None and gap.not_finite is None else number(gap.first_rise, "{:+.4f}"),
        with_error(gap.final, gap.final_standard_error),
        _recovery(gap),
        count_words(gap.area),
        _significance(gap),
    ]
    return f"<tr>{name}" + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>"


def _recovery(gap: GapFigures) -> str:
    if gap.recovery is Recovery.RECOVERED:
        return count_words(gap.recovery_tokens)
    return "not recovered" if gap.recovery is Recovery.NOT_RECOVERED else "no rise"


def _significance(gap: GapFigures) -> str:
    if gap.p_value is None:
        return '<span class="missing">not testable</span>'
    smallest = gap.p_value <= 1 / (FLIPS + 1)
    p_value = f"p ≤ {gap.p_value:.4f}" if smallest else f"p = {gap.p_value:.3g}"
    return f'{"yes" if gap.significant else "no"} <span class="error">{p_value}</span>'


def with_error(value: float | None, error: float | None) -> str:
    """A signed value with four decimals, and its standard error or deviation where there is one."""
    margin = "" if error is None else f' <span class="error">± {error:.4f}</span>'
    return number(value, "{:+.4f}") + margin


def number(value: float | None, form: str) -> str:
    """A number in a form; a true minus sign, and `not recorded` for None and NaN."""
    return MISSING if value is None or not np.isfinite(value) else form.format(value).replace("-", MINUS)


def _is_rows(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(row, dict) for row in value)


def flattened(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested objects as one, by dotted names."""
    flat: dict[str, Any] = {}
    for name, value in values.items():
        nested = isinstance(value, dict) and value
        flat |= flattened(value, f"{prefix}{name}.") if nested else {f"{prefix}{name}": value}
    return flat


def _object_table(name: str, objects: Sequence[Mapping[str, Any]]) -> str:
    columns = list(dict.fromkeys(key for row in objects for key in row))
    words = {column: any(isinstance(row.get(column), str | list) for row in objects) for column in columns}
    style = {column: " class='words'" if words[column] else "" for column in columns}
    headers = "".join(f"<th{style[column]}>{escape(column)}</th>" for column in columns)
    rows = [
        "<tr>" + "".join(f"<td{style[column]}>{plain_value(row.get(column))}</td>" for column in columns) + "</tr>"
        for row in objects
    ]
    return f"<h3 class='run'>{escape(name)}</h3>" + table(headers, rows)


def plain_value(value: Any) -> str:
    """A value of a JSON or YAML file as escaped text."""
    if value is None or value in ([], {}):
        return '<span class="missing">none</span>'
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, list):
        more = f" … ({len(value)} in all)" if len(value) > _LONGEST_LIST else ""
        return ", ".join(plain_value(item) for item in value[:_LONGEST_LIST]) + more
    if isinstance(value, dict):
        return ", ".join(f"{escape(str(name))}: {plain_value(item)}" for name, item in value.items())
    return escape(str(value))


def group_row(title: str, columns: int) -> str:
    """A row of a table that heads those below it."""
    return f'<tr><th colspan="{columns}" scope="rowgroup">{escape(title)}</th></tr>'


def table(headers: str, rows: Sequence[str]) -> str:
    """A table that scrolls sideways on a phone; `headers` and `rows` are HTML."""
    return (
        f'<div class="scroll" tabindex="0"><table><thead><tr>{headers}</tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table></div>"
    )
