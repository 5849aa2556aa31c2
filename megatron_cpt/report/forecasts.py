"""Forecasts of the runs of a report that go on: final loss of each validation set, with its band."""

from collections.abc import Mapping, Sequence
from html import escape

from megatron_cpt.config.errors import BadInput
from megatron_cpt.report.elements import figure, panels, section
from megatron_cpt.report.law_figures import forecast_figure
from megatron_cpt.report.runs import ReportedRun
from megatron_cpt.report.tables import table
from megatron_cpt.scaling_law.fit import Fit
from megatron_cpt.scaling_law.forecast import Forecast, forecast, law_of_run, planned_curve
from megatron_cpt.scaling_law.points import Curve

Forecasts = Mapping[str, Sequence[tuple[Curve, Forecast]]]
"""By run, the curve of each set so far and what is forecast of it."""


def forecasts_of(runs: Sequence[ReportedRun], fits: Mapping[str, Fit]) -> dict[str, list[tuple[Curve, Forecast]]]:
    """Of every run that is not done; `fits` are laws of other runs, by validation set.

    A run of which the rest is not known (no configuration, updates without a rate) has none.
    """
    found = {}
    for run in runs:
        if run.status is None or run.status.state == "done" or not run.validation:
            continue
        try:
            law = law_of_run(run.folder)
            curves = [planned_curve(run.folder, curve.name) for curve, _ in run.validation]
        except BadInput:
            continue
        found[run.name] = [(curve, forecast(law, curve, fits.get(curve.name))) for curve in curves]
    return found


def forecast_line(curve: Curve, told: Forecast) -> str:
    """A forecast in words."""
    if not told.told:
        return f"{curve.name}: no forecast, {'; '.join(told.notes)}"
    ends = f"{told.middle[-1]:.4f} [{told.low[-1]:.4f}, {told.high[-1]:.4f}]"
    return f"{curve.name}: {ends} nats per token at step {told.steps[-1]}; {'; '.join(told.notes)}"


def forecast_section(forecasts: Forecasts) -> str:
    """Where the runs are going; nothing where all are done."""
    if not forecasts:
        return ""
    rows, drawn = [], []
    for run, of_run in forecasts.items():
        for curve, told in of_run:
            now = f"{curve.losses[-1]:.4f}" if len(curve.losses) else ""
            end = f"{told.middle[-1]:.4f}" if told.told else "none"
            between = f"{told.low[-1]:.4f} to {told.high[-1]:.4f}" if told.told else ""
            rows.append(
                f"<tr><td class='words'>{escape(run)}</td><td class='words'>{escape(curve.name)}</td><td>{now}</td>"
                f"<td>{end}</td><td>{between}</td><td class='words'>{escape('; '.join(told.notes))}</td></tr>"
            )
            if told.told:
                drawn.append(figure(f"{curve.name}, {run}", forecast_figure(curve, told)))
    headers = "<th class='words'>Run</th><th class='words'>Set</th><th>Now<small>nats per token</small></th>"
    headers += "<th>At the end</th><th>95 %</th><th class='words'></th>"
    return section(
        "Forecast",
        "The law of the loss, fitted to the records so far (dots), along the schedule that is still to come. A band "
        "knows nothing of a law that is wrong.",
        table(headers, rows) + panels(drawn),
    )
