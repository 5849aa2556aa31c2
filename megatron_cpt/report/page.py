"""The report: one self-contained HTML file; and its figures as files."""

import re
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from pathlib import Path

from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from megatron_cpt.gap.curves import WRONG
from megatron_cpt.gap.figures import GapFigures
from megatron_cpt.gap.summary import (
    NO_LAST_LOSS,
    changed_words,
    count_words,
    end_words,
    first_rise_words,
    is_better,
    is_flat,
    not_finite_words,
    recovery_words,
)
from megatron_cpt.planning.run_file import distinct_names
from megatron_cpt.report.figure_data import figure_csv
from megatron_cpt.report.figures import (
    LIGHT,
    RunCurve,
    change_figure,
    curves_by_set,
    drawing,
    loss_figure,
    run_dashes,
    run_series,
    set_title,
    source_series,
    write_png,
)
from megatron_cpt.report.html import (
    MISSING,
    Section,
    figure,
    gap_legend,
    html_page,
    missing_section,
    panels,
    run_heading,
    run_legend,
    run_swatch,
    section,
    source_legend,
)
from megatron_cpt.report.provenance import configurations_section, machines_section, plans_section
from megatron_cpt.report.read import Comparison, ReportedRun, compare
from megatron_cpt.report.sections import (
    Forecasts,
    contamination_section,
    events_section,
    forecast_section,
    samples_section,
    signals_section,
    tasks_section,
    time_section,
)
from megatron_cpt.report.tables import (
    MINUS,
    arm_table,
    difference_table,
    gap_table,
    mixture_table,
    split_table,
)
from megatron_cpt.report.training_figures import (
    accuracy_figure,
    cosine_figure,
    drawn_sources,
    epochs_figure,
    gradient_norm_figure,
    group_figure,
    held_out_norm_figure,
    learning_rate_figure,
    mixture_figure,
    speed_figure,
    step_change_figure,
    training_loss_figure,
    update_figure,
    update_ratio_figure,
)
from megatron_cpt.runs.folder import write_durably

Sets = Mapping[tuple[str, str], Sequence[RunCurve]]


def report_page(
    runs: Sequence[ReportedRun],
    comparison: Comparison | None = None,
    refresh_seconds: int | None = None,
    forecasts: Forecasts | None = None,
) -> str:
    """The whole page of one or several runs; they are compared without a control where no comparison is given.

    `refresh_seconds`: how often a browser that shows the page is to load it again; None: never. `forecasts`: of the
    runs that go on.
    """
    by_set, compared = curves_by_set([run.validation for run in runs]), comparison or compare(runs)
    with drawing():
        sections = [
            _losses(runs, by_set),
            forecast_section(forecasts or {}),
            _early(runs, by_set),
            _gap(runs, by_set),
            _control(compared),
            _arms(compared),
            tasks_section(runs),
            samples_section(runs),
            _training(runs),
            signals_section(runs),
            _mixture(runs),
            time_section(runs),
            events_section(runs),
            contamination_section(runs),
            machines_section(runs),
            plans_section(runs),
            configurations_section(runs),
        ]
    return html_page(" · ".join(run.name for run in runs), _head(runs), sections, refresh_seconds)


def _head(runs: Sequence[ReportedRun]) -> str:
    cards = "".join(_card(index, run) for index, run in enumerate(runs))
    return (
        "<header><h1>Continual pretraining report</h1>"
        '<p class="lead">What each run learnt of its domain, what it forgot, and what of that came back.</p>'
        f'<div class="cards">{cards}</div></header>'
    )


def _card(index: int, run: ReportedRun) -> str:
    sets = "".join(_card_set(curve.role, curve.name, gap, run.ended) for curve, gap in run.validation)
    content = f"<dl>{sets}</dl>" if sets else '<p class="missing">No validation set was evaluated.</p>'
    return (
        f'<section class="card"><h3>{run_swatch(index)} {escape(run.name)}</h3>'
        f'<p class="note">{_state(run)}</p>{content}'
        f'<p class="note folder">{escape(str(run.folder))}</p></section>'
    )


def _card_set(role: str, name: str, gap: GapFigures, ended: bool) -> str:
    when = end_words(ended)
    if gap.depth is None:
        words = f'<span class="missing">{escape(gap.missing or "not recorded")}</span>'
    elif gap.final is None or gap.transient is None:
        words = f'<span class="figure-number">+{gap.depth:.3f}</span> nats per token at worst, {NO_LAST_LOSS}'
    elif role == "domain":
        change = f"{gap.final:+.3f}".replace("-", MINUS)
        better = "better" if gap.final < 0 else "worse"
        words = f'<span class="figure-number">{change}</span> nats per token, {better} {when}'
    elif is_flat(gap):
        change = f"{gap.final:+.3f}".replace("-", MINUS)
        better = f"better {when}" if is_better(gap) else when
        words = f'<span class="figure-number">{change}</span> nats per token, {better}; {recovery_words(gap)}'
    else:
        doubt = ", within evaluation noise" if gap.significant is False else ""
        end = f"{gap.final:+.3f}".replace("-", MINUS)
        words = (
            f'<span class="figure-number">+{gap.depth:.3f}</span> nats per token at worst{doubt}, '
            f'<span class="figure-number">{end}</span> {when}; {gap.transient:.3f} of the rise transient, '
            f"{recovery_words(gap)}{first_rise_words(gap)}"
        )
    if gap.not_finite is not None and gap.missing is None:
        words += f'; <span class="missing">{not_finite_words(gap.not_finite)}</span>'
    if gap.changed_tokens is not None:
        words += f'; <span class="missing">{changed_words(gap.changed_tokens)}</span>'
    return f"<div><dt>{escape(set_title(role, name))}</dt><dd>{words}</dd></div>"


def _state(run: ReportedRun) -> str:
    tokens = f"{count_words(run.training.tokens[-1])} tokens" if len(run.training.tokens) else "no training records"
    state = f"state {MISSING}" if run.status is None else escape(run.status.state)
    return f"{state}, {tokens}"


def _losses(runs: Sequence[ReportedRun], by_set: Sets) -> Section:
    if not by_set:
        return missing_section("Validation loss", "No validation set was evaluated.")
    figures = [figure(set_title(role, name), loss_figure(curves), runs) for (role, name), curves in by_set.items()]
    return section(
        "Validation loss",
        "The dashed line is the loss before the first update; the shaded area above it is the gap. "
        "A ring marks the largest rise, a dot the point from which the loss was back. A dotted line across, and "
        "dots after it, are where a set was changed: losses of other sequences or labels.",
        _different_sequences(by_set) + gap_legend([run.name for run in runs]) + panels(figures),
    )


def _different_sequences(by_set: Sets) -> str:
    """A warning that names the sets which are not the same sequences in all runs."""
    different = [name for (_, name), curves in by_set.items() if len({c.curve.identity for c in curves}) > 1]
    if not different:
        return ""
    names = escape(", ".join(different))
    return f'<p class="warning">Other or unknown sequences in some runs, so not comparable between runs: {names}.</p>'


def _early(runs: Sequence[ReportedRun], by_set: Sets) -> Section | None:
    if not by_set:
        return None
    figures = [figure(set_title(role, name), change_figure(curves), runs) for (role, name), curves in by_set.items()]
    return section(
        "The first steps",
        "Change of the loss since the start, on a log axis that spreads the early part. The coloured band is two "
        "standard errors either way, each sequence compared with itself; the grey one is 0.01 nats about the "
        "baseline.",
        run_legend([run.name for run in runs]) + panels(figures),
    )


def _gap(runs: Sequence[ReportedRun], by_set: Sets) -> Section | None:
    if not by_set:
        return None
    return section(
        "Gap figures",
        "Transient: the part of the largest rise that came back. Recovered: from then on two evaluations running "
        "within 0.01 nats or two standard errors of the baseline, or below it. SE: standard error of the change "
        "on these sequences; what another seed would have given is not in it: see the arms, where there are some.",
        gap_table(by_set, runs),
    )


def _control(comparison: Comparison) -> Section | None:
    if comparison.control is None:
        return None
    return section(
        "Re-warming and shift",
        f"{comparison.control} is the control: the same schedule on general text. Its rise is re-warming; what a run "
        "rose beyond it is the shift of the text.",
        split_table(comparison.splits),
    )


def _arms(comparison: Comparison) -> Section | None:
    if all(len(arm.runs) < 2 for arm in comparison.arms):
        return None
    differences = ""
    if comparison.differences:
        note = (
            "Second arm minus first. Welch's test against the spread over seeds; Holm's correction over all pairs of "
            "arms. An arm of one run has no spread, so it cannot be judged."
        )
        differences = f'<h3 class="run">Differences between arms</h3><p class="note">{escape(note)}</p>'
        differences += difference_table(comparison.differences)
    return section(
        "Arms over seeds",
        "Runs whose configurations differ only in seed and folder are one arm. Mean ± standard deviation over seeds.",
        arm_table(comparison.arms) + differences,
    )


def _training(runs: Sequence[ReportedRun]) -> Section:
    if not any(len(run.training.tokens) for run in runs):
        return missing_section("Training", "No training step was recorded.")
    losses = [
        figure(run.name, training_loss_figure(run.training), [run], source_legend(run.training, total="all tokens"))
        if len(run.training.tokens)
        else figure(run.name, None)
        for run in runs
    ]
    histories = [run.training for run in runs]
    schedule = [
        figure("Learning rate", learning_rate_figure(histories), runs),
        figure("Gradient norm, before clipping", gradient_norm_figure(histories), runs),
    ]
    return section(
        "Training",
        "Loss of all tokens and of each source's. Long runs are drawn as means over stretches of steps.",
        panels(losses) + '<div class="spaced">' + run_legend([run.name for run in runs]) + panels(schedule) + "</div>",
    )


def _mixture(runs: Sequence[ReportedRun]) -> Section:
    parts = []
    for index, run in enumerate(runs):
        parts.append(run_heading(index, run.name))
        if not run.training.sources:
            parts.append(f"<p>{MISSING}</p>")
            continue
        figures = [
            figure("Tokens read, source upon source", mixture_figure(run.training), [run]),
            figure("Epochs of each source", epochs_figure(run.training), [run]),
        ]
        parts += [source_legend(run.training), panels(figures), mixture_table(run.training)]
    return section("Mixture", "What was really read from each source.", "".join(parts))


def export_figures(runs: Sequence[ReportedRun], folder: Path) -> list[Path]:
    """Writes NAME.svg, NAME.png and NAME.csv of each figure into a folder, which is made; returns the PNG paths.

    Characters that are none of file names become `-`. Of names that are then alike, but for case, later ones get a
    number.
    """
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    with drawing():
        figures = list(_figures(runs))
        names = distinct_names(re.sub(r"[^\w.-]+", "-", name) for name, *_ in figures)
        for name, (_, figure, drawn, labels) in zip(names, figures, strict=True):
            if figure is None:
                continue
            lines = [Line2D([], [], color=LIGHT[colour], linestyle=style, linewidth=2.4) for _, colour, style in labels]
            figure.legend(lines, [label for label, _, _ in labels], loc="outside lower center",
                          ncols=min(4, len(labels)), frameon=False, fontsize=10)  # fmt: skip
            path = folder / name
            figure.savefig(f"{path}.svg", format="svg", facecolor=LIGHT["paper"], metadata={"Date": None})
            write_png(figure, Path(f"{path}.png"))
            write_durably(Path(f"{path}.csv"), figure_csv(figure, drawn))
            written.append(Path(f"{path}.png"))
    return written


Label = tuple[str, str, tuple[float, tuple[float, ...]]]
"""A line of a legend: its words, colour name and style."""


def _figures(runs: Sequence[ReportedRun]) -> Iterator[tuple[str, Figure | None, Sequence[ReportedRun], list[Label]]]:
    """(file name, figure, runs that it draws, legend) of all figures of the page."""
    labels = [(run.name, run_series(index), run_dashes(index)) for index, run in enumerate(runs)]
    for (_, name), curves in curves_by_set([run.validation for run in runs]).items():
        yield f"loss-{name}", loss_figure(curves), runs, labels
        yield f"change-{name}", change_figure(curves), runs, labels
    chances = {name: chance for run in runs for name, chance in run.chances.items()}
    for (_, name), curves in curves_by_set([run.tasks for run in runs]).items():
        task = accuracy_figure(curves, chances.get(name)) if curves[0].curve.unit == WRONG else loss_figure(curves)
        yield f"task-{name}", task, runs, labels
    signals = [run.signals for run in runs]
    for name in dict.fromkeys(name for one in signals for name in one.groups):
        having = [(index, one.groups[name]) for index, one in enumerate(signals) if name in one.groups]
        yield f"tasks-{name}", group_figure(having), runs, labels
    yield "weight-update", update_figure(signals, "norm_ratio"), runs, labels
    yield "weight-update-bottom-over-top", update_ratio_figure(signals, "mean_relative"), runs, labels
    for name in dict.fromkeys(name for one in signals for name in one.conflicts):
        compared = [(index, one.conflicts[name]) for index, one in enumerate(signals) if name in one.conflicts]
        yield f"gradient-cosine-{name}", cosine_figure(compared), runs, labels
        yield f"gradient-norm-{name}", held_out_norm_figure(compared), runs, labels
        yield f"change-by-one-update-{name}", step_change_figure(compared), runs, labels
    yield "speed", speed_figure(signals), runs, labels
    trained = [run for run in runs if len(run.training.tokens)]
    if trained:
        yield "learning-rate", learning_rate_figure([run.training for run in runs]), runs, labels
        yield "gradient-norm", gradient_norm_figure([run.training for run in runs]), runs, labels
    for run in trained:
        solid = run_dashes(0)
        sources = [(name, source_series(index), solid) for index, name in enumerate(drawn_sources(run.training))]
        losses = [("all tokens", "ink", solid), *sources]
        yield f"training-loss-{run.name}", training_loss_figure(run.training), [run], losses
        # Without sources they have a name too: it has the same number as that of the run's losses.
        mixture, epochs = (
            (mixture_figure(run.training), epochs_figure(run.training)) if run.training.sources else (None, None)
        )
        yield f"mixture-{run.name}", mixture, [run], sources
        yield f"epochs-{run.name}", epochs, [run], sources
