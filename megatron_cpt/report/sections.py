"""Sections of the page beside the losses: tasks, samples, signals, time, events, contamination, forecasts."""

import re
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

import numpy as np

from megatron_cpt.config.errors import BadInput, Fault
from megatron_cpt.gap.curves import WRONG
from megatron_cpt.gap.figures import ContinualMeasures, GapFigures, continual_measures
from megatron_cpt.gap.summary import count_words, recovery_words
from megatron_cpt.report.figures import RunCurve, curves_by_set, loss_figure, set_title
from megatron_cpt.report.html import (
    Section,
    figure,
    missing_section,
    panels,
    run_heading,
    run_legend,
    run_swatch,
    section,
)
from megatron_cpt.report.law_page import forecast_figure
from megatron_cpt.report.read import ReportedRun
from megatron_cpt.report.tables import group_row, number, table, with_error
from megatron_cpt.report.training_figures import (
    accuracy_figure,
    cosine_figure,
    group_figure,
    held_out_norm_figure,
    speed_figure,
    step_change_figure,
    update_figure,
    update_ratio_figure,
)
from megatron_cpt.scaling_law.curves import Curve
from megatron_cpt.scaling_law.fit import Fit
from megatron_cpt.scaling_law.forecast import Forecast, forecast, law_of_run, planned_curve
from megatron_cpt.scaling_law.laws import Law

_MOST_EVENTS = 200
"""Events of a run that are listed; of more, the last ones."""


def tasks_section(runs: Sequence[ReportedRun]) -> Section:
    """Accuracy of every task and group against tokens, and what it lost on the way."""
    by_task = curves_by_set([run.tasks for run in runs])
    if not by_task:
        return missing_section("Downstream tasks", "No task was scored (tasks.files, tasks.lm_eval).")
    chances = {name: chance for run in runs for name, chance in run.chances.items()}
    figures = [figure(set_title(role, name, "tasks"), accuracy_figure(curves, chances.get(name))
                      if curves[0].curve.unit == WRONG else loss_figure(curves), runs)
               for (role, name), curves in by_task.items()]  # fmt: skip
    for name in dict.fromkeys(name for run in runs for name in run.signals.groups):
        having = [(index, run.signals.groups[name]) for index, run in enumerate(runs) if name in run.signals.groups]
        figures.append(figure(f"Mean of {name}", group_figure(having), runs))
    return section(
        "Downstream tasks",
        "Accuracy by log-likelihood, with two standard errors over the questions; the dotted line is guessing. A "
        "change is tested question by question against the start.",
        run_legend([run.name for run in runs]) + panels(figures) + _task_table(by_task, runs) + _continual(runs),
    )


def samples_section(runs: Sequence[ReportedRun]) -> Section | None:
    """What the models wrote after each prompt; a model that several runs began with is shown once."""
    made = [(index, run, run.samples) for index, run in enumerate(runs) if run.samples is not None]
    if not made:
        return None
    texts: dict[str, dict[str, str]] = {}
    for index, run, samples in made:
        for model in samples.models:
            when = f"step {model.step:,}, {count_words(model.tokens)} tokens"
            label = f"{run_swatch(index)} {escape(run.name)}<small>{when}</small>"
            if model.step == 0:
                label = f"{escape(model.folder)}<small>before the first step</small>"
            for prompt, text in zip(samples.prompts, model.texts, strict=True):
                texts.setdefault(prompt, {})[label] = text
    rows = []
    for prompt, by_label in texts.items():
        rows.append(f'<tr><th colspan="2" class="sample">{_visible(prompt)}</th></tr>')
        rows += [f"<tr><td class='words'>{label}</td>{_sample_cell(text)}</tr>" for label, text in by_label.items()]
    length = max(samples.length for _, _, samples in made)
    note = (
        f"The most likely token, again and again, {length} at most, by transformers from the Hugging Face folders. A "
        "few texts show the manner of a model, not how good it is."
    )
    return section("Samples", note, table("<th class='words'>Model</th><th class='words'>Text</th>", rows))


def _sample_cell(text: str) -> str:
    shown = _visible(text) if text.strip() else '<span class="missing">nothing: the model ended the text</span>'
    return f"<td class='sample'>{shown}</td>"


def _visible(text: str) -> str:
    """Text as HTML in which no control character, of writing direction neither, stays."""
    return escape(re.sub(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]", "\N{REPLACEMENT CHARACTER}", text))


def signals_section(runs: Sequence[ReportedRun]) -> Section:
    """Plasticity and stability: how far the weights moved, and the gradients of held-out text and of training."""
    of_runs = [run.signals for run in runs]
    if not any(one.updates or one.conflicts for one in of_runs):
        what = "Neither was recorded (validation.weight_updates, validation.gradient_conflict)."
        return missing_section("Plasticity and stability", what)
    drawn = [
        ("Update of the bottom (bold) and top layers: ratio of norms", update_figure(of_runs, "norm_ratio")),
        ("Bottom over top: mean relative update, as in arXiv:2406.14833",
         update_ratio_figure(of_runs, "mean_relative")),
    ]  # fmt: skip
    for name in dict.fromkeys(name for one in of_runs for name in one.conflicts):
        having = [(index, one.conflicts[name]) for index, one in enumerate(of_runs) if name in one.conflicts]
        drawn += [
            (f"Gradient of {name}: cosine, of all (bold), bottom and top (dotted) layers", cosine_figure(having)),
            (f"Gradient of {name}: norm", held_out_norm_figure(having)),
            (f"Loss of {name}: change by one update, and to first order (dotted)", step_change_figure(having)),
        ]
    return section(
        "Plasticity and stability",
        "How far the weights of the bottom and the top layers are from the start, and the gradient on held-out text "
        "beside that of the training step: below a cosine of 0 the step works against that text.",
        run_legend([run.name for run in runs]) + panels([figure(title, one, runs) for title, one in drawn]),
    )


def time_section(runs: Sequence[ReportedRun]) -> Section:
    """Speed, and where the time went."""
    if not any(run.signals.seconds for run in runs):
        return missing_section("Speed", "No times were recorded.")
    headers = "<th>Run</th><th>Tokens per second<small>median</small></th><th>Updates<small>seconds</small></th>"
    headers += "<th>Evaluations<small>seconds</small></th><th>of the time<small>evaluations</small></th>"
    drawn = figure("Tokens per second", speed_figure([run.signals for run in runs]), runs)
    note = "Of updates and evaluations; start-up, checkpoints and waiting are not in it."
    legend = run_legend([run.name for run in runs])
    return section("Speed", note, legend + panels([drawn]) + table(headers, [_time_row(run) for run in runs]))


def events_section(runs: Sequence[ReportedRun]) -> Section:
    """What happened besides: steps that were skipped, sources that ended, phases, stops."""
    if not any(run.signals.events for run in runs):
        return missing_section("Events", "None was recorded.")
    parts = []
    for index, run in enumerate(runs):
        events = run.signals.events
        if not events:
            continue
        more = f"<p class='note'>The last {_MOST_EVENTS} of {len(events):,}.</p>" if len(events) > _MOST_EVENTS else ""
        rows = [
            f"<tr><td>{number(event.step, '{:,}')}</td><td>{count_words(event.tokens)}</td>"
            f"<td class='words'>{escape(event.name.replace('_', ' '))}</td>"
            f"<td class='words'>{escape(', '.join(f'{name}: {value}' for name, value in event.details.items()))}</td>"
            "</tr>"
            for event in events[-_MOST_EVENTS:]
        ]
        headers = "<th>Step</th><th>Tokens</th><th class='words'>What</th><th class='words'>Details</th>"
        parts.append(run_heading(index, run.name) + more + table(headers, rows))
    return section("Events", "What happened besides updates and evaluations.", "".join(parts))


def _task_table(by_task: dict[tuple[str, str], list[RunCurve]], runs: Sequence[ReportedRun]) -> str:
    headers = ("Start", "End", "End minus start<small>± SE</small>", "Largest fall<small>± SE</small>", "Recovery",
               "Significant fall<small>family-wise 5 %</small>")  # fmt: skip
    rows = []
    for (role, name), curves in by_task.items():
        unit = "accuracy" if curves[0].curve.unit == WRONG else "nats per token, rise instead of fall"
        rows.append(group_row(f"{set_title(role, name, 'tasks')} ({unit})", len(headers) + 1))
        rows += [_task_row(runs[item.index].name, item.gap, item.curve.unit == WRONG) for item in curves]
    return table("<th>Run</th>" + "".join(f"<th>{header}</th>" for header in headers), rows)


def _task_row(run: str, gap: GapFigures, accuracy: bool) -> str:
    name = f"<td class='words'>{escape(run)}</td>"
    if gap.missing is not None or gap.baseline is None or gap.final is None or gap.depth is None:
        return f"<tr>{name}<td colspan='6' class='words missing'>{escape(gap.missing or 'not recorded')}</td></tr>"
    start, end = gap.baseline, gap.baseline + gap.final
    judged = '<span class="missing">not testable</span>' if gap.significant is None else "no"
    cells = [
        number(1 - start if accuracy else start, "{:.4f}"),
        number(1 - end if accuracy else end, "{:.4f}"),
        with_error(0.0 - gap.final if accuracy else gap.final, gap.final_standard_error),
        with_error(0.0 - gap.depth if accuracy else gap.depth, gap.depth_standard_error),
        recovery_words(gap),
        "yes" if gap.significant else judged,
    ]
    return f"<tr>{name}" + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>"


def _continual(runs: Sequence[ReportedRun]) -> str:
    measured = [(run.name, continual_measures([curve for curve, _ in run.tasks])) for run in runs]
    if all(one.min_accuracy is None for _, one in measured):
        return ""
    widths = list(measured[0][1].windowed_forgetting)
    headers = "<th>Run</th><th>min-ACC</th><th>WC-ACC</th>"
    for width in widths:
        headers += f"<th>WF<small>w = {width}</small></th><th>WP<small>w = {width}</small></th>"
    note = (
        "Of De Lange et al. (arXiv:2205.13452): the lowest accuracy of the general tasks on average, the same with the "
        "domain tasks' last one, and the largest fall (WF) and gain (WP) within w equally spaced evaluations."
    )
    title = f'<h3 class="run">Continual evaluation</h3><p class="note">{note}</p>'
    return title + table(headers, [_continual_row(name, one, widths) for name, one in measured])


def _continual_row(run: str, measures: ContinualMeasures, widths: Sequence[str]) -> str:
    values = [measures.min_accuracy, measures.worst_case_accuracy]
    for width in widths:
        values += [measures.windowed_forgetting[width], measures.windowed_plasticity[width]]
    cells = [
        '<span class="missing">too few evaluations</span>' if value is None else f"{value:.4f}" for value in values
    ]
    return f"<tr><td class='words'>{escape(run)}</td>" + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>"


def _time_row(run: ReportedRun) -> str:
    seconds = run.signals.seconds
    training = seconds.get("train")
    evaluations = sum(value for kind, value in seconds.items() if kind != "train")
    speed = run.signals.speed.values[np.isfinite(run.signals.speed.values)]
    share = evaluations / (training + evaluations) if training else None
    cells = [
        number(float(np.median(speed)) if len(speed) else None, "{:,.0f}"),
        number(training, "{:,.1f}"),
        number(evaluations, "{:,.1f}"),
        number(None if share is None else 100 * share, "{:.1f} %"),
    ]
    return f"<tr><td class='words'>{escape(run.name)}</td>" + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>"


Forecasts = Mapping[str, Sequence[tuple[Curve, Forecast]]]
"""By run, the curve of each set so far and what is forecast of it."""


def forecasts_of(runs: Sequence[ReportedRun], fits: Mapping[str, Fit]) -> dict[str, list[tuple[Curve, Forecast]]]:
    """Of every run that is not done; `fits` are laws of other runs, by validation set.

    A run of which the rest is not known (no configuration, updates without a rate) has none.
    """
    found = {}
    for run in runs:
        try:
            law, curves = forecast_inputs(run)
        except BadInput:
            continue
        found[run.name] = [(curve, forecast(law, curve, fits.get(curve.name))) for curve in curves]
    return found


def forecast_inputs(run: ReportedRun) -> tuple[Law, list[Curve]]:
    """The law of a run and the curves of its sets. Raises BadInput where the rest of the run is not known or over."""
    if run.status is None or run.status.state == "done" or not run.validation:
        rule = "is at its end." if run.validation else "has no validation set."
        raise BadInput(Fault(str(run.folder), rule, "Leave --law out, or give a run that goes on."))
    return law_of_run(run.folder), [planned_curve(run.folder, curve.name) for curve, _ in run.validation]


def forecast_line(curve: Curve, forecast: Forecast) -> str:
    """A forecast in words."""
    if not forecast.exists:
        return f"{curve.name}: no forecast, {'; '.join(forecast.notes)}"
    ends = f"{forecast.middle[-1]:.4f} [{forecast.low[-1]:.4f}, {forecast.high[-1]:.4f}]"
    return f"{curve.name}: {ends} nats per token at step {forecast.steps[-1]}; {'; '.join(forecast.notes)}"


def forecast_section(forecasts: Forecasts) -> Section | None:
    """Where the runs are going; nothing where all are done."""
    if not forecasts:
        return None
    rows, drawn = [], []
    for run, of_run in forecasts.items():
        for curve, found in of_run:
            now = f"{curve.losses[-1]:.4f}" if len(curve.losses) else ""
            end = f"{found.middle[-1]:.4f}" if found.exists else "none"
            between = f"{found.low[-1]:.4f} to {found.high[-1]:.4f}" if found.exists else ""
            rows.append(
                f"<tr><td class='words'>{escape(run)}</td><td class='words'>{escape(curve.name)}</td><td>{now}</td>"
                f"<td>{end}</td><td>{between}</td><td class='words'>{escape('; '.join(found.notes))}</td></tr>"
            )
            if found.exists:
                drawn.append(figure(f"{curve.name}, {run}", forecast_figure(curve, found), [curve]))
    headers = "<th class='words'>Run</th><th class='words'>Set</th><th>Now<small>nats per token</small></th>"
    headers += "<th>At the end</th><th>95 %</th><th class='words'></th>"
    return section(
        "Forecast",
        "The law of the loss, fitted to the records so far (dots), along the schedule that is still to come. A band "
        "knows nothing of a law that is wrong.",
        table(headers, rows) + panels(drawn),
    )


_NOT_COMPARED = "<span class='missing'>not compared</span>"


def contamination_section(runs: Sequence[ReportedRun]) -> Section:
    """What the plan of each run says of it."""
    rows_of = [_rows(run.plan) for run in runs]
    if not any(row.get("compared") for rows in rows_of for row in rows):
        return missing_section("Contamination", "Nothing is known of it (prepare --decontaminate).")
    headers = (
        "<th class='words'>Source</th><th class='words'>Evaluation</th><th>Items overlapped</th>"
        "<th>Documents read<small>that overlap</small></th><th>Documents left out<small>by prepare</small></th>"
    )
    parts = [
        run_heading(index, run.name) + table(headers, [_row(row) for row in rows])
        for index, (run, rows) in enumerate(zip(runs, rows_of, strict=True))
        if rows
    ]
    return section(
        "Contamination",
        "Documents of a training source that share 13 words running with a task's question and choice, or with a "
        "validation set, as prepare --decontaminate counted them.",
        _named(runs) + "".join(parts),
    )


def _rows(plan: Mapping[str, Any] | None) -> list[dict[str, Any]]:
    rows = (plan or {}).get("contamination")
    return [row for row in rows if isinstance(row, dict)] if isinstance(rows, list) else []


def _named(runs: Sequence[ReportedRun]) -> str:
    """A warning that names what a run has read of its own evaluation."""
    warnings = []
    for run in runs:
        if names := overlapped_names(run):
            words = escape(f"{run.name} trains on documents that overlap {', '.join(names)}.")
            warnings.append(f'<p class="warning">{words}</p>')
    return "".join(warnings)


def overlapped_names(run: ReportedRun) -> list[str]:
    """The tasks and validation sets that documents of the run's sources overlap, by its plan."""
    return list(dict.fromkeys(str(row.get("name")) for row in _rows(run.plan) if row.get("documents_kept")))


def _row(row: Mapping[str, Any]) -> str:
    names = f"<td class='words'>{escape(str(row.get('source')))}</td>"
    names += f"<td class='words'>{escape(str(row.get('kind')))} {escape(str(row.get('name')))}</td>"
    compared, datasets = row.get("compared"), row.get("datasets")
    if not compared:
        return f"<tr>{names}<td colspan='3' class='words'>{_NOT_COMPARED}</td></tr>"
    part = "" if compared == datasets else f"<small>{compared} of {datasets} datasets compared</small>"
    cells = [
        f"{number(row.get('items_kept'), '{:,}')} of {number(row.get('items'), '{:,}')}{part}",
        number(row.get("documents_kept"), "{:,}"),
        number(row.get("documents_left_out"), "{:,}"),
    ]
    return f"<tr>{names}" + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>"
