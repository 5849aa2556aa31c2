"""Sections on what each run is: where and when it was made, its plan, its configuration and what sets it apart."""

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from megatron_cpt.gap.compare import config_values
from megatron_cpt.report.html import MISSING, Section, missing_section, run_swatch, section
from megatron_cpt.report.read import ReportedRun
from megatron_cpt.report.tables import flattened, number, plain_value, plan_tables, table


def machines_section(runs: Sequence[ReportedRun]) -> Section:
    """Machine, versions, dates and rank-hours of every run."""
    if not any(run.versions or run.log_times for run in runs):
        return missing_section("Machines", "Neither versions.json nor log.txt is there.")
    headers = (
        "<th>Run</th><th class='words'>First and last<small>line of the log</small></th><th>Ranks</th>"
        "<th>Rank-hours<small>GPU-hours on GPUs</small></th>"
        "<th class='words'>Device</th><th class='words'>Versions</th>"
    )
    note = (
        "Of the last start. Rank-hours: the recorded time of updates and evaluations, times the ranks; start-up, "
        "checkpoints, waiting and steps that were done twice are not in it."
    )
    return section("Machines", note, table(headers, [_machine_row(index, run) for index, run in enumerate(runs)]))


def _machine_row(index: int, run: ReportedRun) -> str:
    versions, ranks = run.versions or {}, (run.plan or {}).get("world_size")
    ranks = ranks if isinstance(ranks, int) else None
    hours = None if ranks is None or not run.signals.seconds else ranks * sum(run.signals.seconds.values()) / 3600
    times = "<br>".join(f'<span class="time">{escape(time.replace("T", " "))}</span>' for time in run.log_times or ())
    packages = versions.get("packages")
    named = {"python": versions.get("python"), **(packages if isinstance(packages, dict) else {})}
    known = [f"{name} {version}" for name, version in named.items() if version is not None]
    device = versions.get("gpu") or ("CPU" if "gpu" in versions else None)
    where = [str(one) for one in (device, versions.get("machine")) if one is not None]
    return (
        f"<tr><td class='words'>{run_swatch(index)} {escape(run.name)}</td><td class='words'>{times or MISSING}</td>"
        f"<td>{number(ranks, '{:,}')}</td><td>{number(hours, '{:,.3g}' if hours and hours < 1000 else '{:,.0f}')}</td>"
        f"<td class='words'>{'<br>'.join(map(escape, where)) or MISSING}</td>"
        f"<td class='words'>{escape(', '.join(known)) or MISSING}</td></tr>"
    )


def plans_section(runs: Sequence[ReportedRun]) -> Section:
    """plan.json of every run."""
    parts = [_folded(run.name, plan_tables(run.plan) if run.plan else None) for run in runs]
    return section("Plan", "What each run set out to do.", "".join(parts))


def configurations_section(runs: Sequence[ReportedRun]) -> Section:
    """What differs between the configurations, and each of them."""
    parts = [_folded(run.name, None if run.config is None else f"<pre>{escape(run.config)}</pre>") for run in runs]
    note = "Resolved: each run can be repeated from it alone."
    return section("Configuration", note, _differences(runs) + "".join(parts))


def _differences(runs: Sequence[ReportedRun]) -> str:
    """The settings that are not the same in all runs that have a configuration; nothing for fewer than two."""
    values = [config_values(run.config) for run in runs]
    known = [(run, flattened(one)) for run, one in zip(runs, values, strict=True) if one is not None]
    if len(known) < 2:
        return ""
    names = dict.fromkeys(name for _, settings in known for name in settings)
    differing = [name for name in names if name != "run.folder" and _differs(name, [one for _, one in known])]
    if not differing:
        return '<p class="folded">The configurations differ in nothing but the folder.</p>'
    rows = [
        f"<tr><td class='words'>{escape(name)}</td>"
        + "".join(f"<td class='words'>{_setting(settings, name)}</td>" for _, settings in known)
        + "</tr>"
        for name in differing
    ]
    headers = "".join(f"<th class='words'>{escape(run.name)}</th>" for run, _ in known)
    return '<h3 class="run">Settings that differ</h3>' + table(f"<th>Setting</th>{headers}", rows)


def _differs(name: str, of_runs: Sequence[Mapping[str, Any]]) -> bool:
    """Whether a setting is not the same in all runs. One that a run lacks is like one that is None."""
    return any(settings.get(name) != of_runs[0].get(name) for settings in of_runs[1:])


def _setting(settings: Mapping[str, Any], name: str) -> str:
    if name not in settings:
        return '<span class="missing">not set</span>'
    value = settings[name]
    return repr(value) if isinstance(value, float) else plain_value(value)  # all digits: two that differ look different


def _folded(name: str, content: str | None) -> str:
    """A fold with the run's name, or that there is nothing to unfold."""
    if content is None:
        return f'<p class="folded">{escape(name)}: {MISSING}</p>'
    return f"<details><summary>{escape(name)}</summary>{content}</details>"
