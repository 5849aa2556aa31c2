"""What `megatron-cpt average --curve` shows: losses over the share of a model in its mean with its base."""

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

import numpy as np
from matplotlib.figure import Figure

from megatron_cpt.report.figure_data import csv_link
from megatron_cpt.report.figures import HEIGHT, LIGHT, WIDTH, drawing, run_dashes, run_series, set_title
from megatron_cpt.report.html import figure, html_page, run_legend, section
from megatron_cpt.report.tables import table


@dataclass(frozen=True)
class SetCurve:
    """The losses of one validation set."""

    name: str
    """Its name in the config."""
    role: str
    """domain or general."""
    shares: tuple[float, ...]
    """Of the model in its mean with the base, ascending: 0 is the base."""
    losses: tuple[float, ...]
    """At each share, nats per token."""
    bits_per_byte: tuple[float | None, ...]
    """At each share; None where the tokenizer does not tell bytes."""

    @property
    def lowest(self) -> int:
        """Which share has the lowest loss, the first of several."""
        return int(np.argmin(self.losses))

    def __str__(self) -> str:
        return (
            f"{self.name}: lowest loss {self.losses[self.lowest]:.4f} nats/token at {self.shares[self.lowest]:g}; "
            f"{self.losses[0]:.4f} at 0, {self.losses[-1]:.4f} at 1"
        )


def curve_csv(curves: Sequence[SetCurve]) -> str:
    """A row for each share and set."""
    written = io.StringIO()
    writer = csv.writer(written, lineterminator="\n")
    writer.writerow(["share", "set", "role", "loss", "bits_per_byte"])
    for at, share in enumerate(curves[0].shares):
        for curve in curves:
            bits = curve.bits_per_byte[at]
            writer.writerow(
                [f"{share:g}", curve.name, curve.role, f"{curve.losses[at]:.6f}", "" if bits is None else f"{bits:.6f}"]
            )
    return written.getvalue()


def curve_page(curves: Sequence[SetCurve], model: str, base: str) -> str:
    """The page: the change of every set since the base, and the losses."""
    title = "Between a base and a model"
    lead = f"Validation losses of means of {model} and {base}. Share 0 is {base}, share 1 is {model}."
    with drawing():
        drawn = figure("Loss minus that of the base", _change_figure(curves))
    head = f'<header><h1>{title}</h1><p class="lead">{escape(lead)}</p></header>'
    legend = run_legend([set_title(curve.role, curve.name) for curve in curves])
    headers = "".join(f"<th>{escape(word)}</th>" for word in ["Share", *(curve.name for curve in curves)])
    rows = [
        f"<tr><td>{share:g}</td>{''.join(f'<td>{curve.losses[at]:.4f}</td>' for curve in curves)}</tr>"
        for at, share in enumerate(curves[0].shares)
    ]
    note = "The ring is the lowest loss of a set."
    sections = [
        section("Change", note, legend + drawn),
        section("Losses", "Nats per token.", table(headers, rows) + csv_link("curve", curve_csv(curves))),
    ]
    return html_page(title, head, sections)


def _change_figure(curves: Sequence[SetCurve]) -> Figure:
    """A line for each set: its loss at every share minus that at 0, with a ring at the lowest."""
    panel = Figure(figsize=(WIDTH, HEIGHT), layout="constrained")
    axes = panel.subplots()
    axes.axhline(0, color=LIGHT["muted"], linewidth=1, linestyle=(0, (4, 3)))
    for index, curve in enumerate(curves):
        colour, change = LIGHT[run_series(index)], np.array(curve.losses) - curve.losses[0]
        axes.plot(curve.shares, change, color=colour, linestyle=run_dashes(index), linewidth=1.8, marker="o",
                  markersize=3)  # fmt: skip
        axes.plot([curve.shares[curve.lowest]], [change[curve.lowest]], "o", markersize=9, color=colour,
                  markerfacecolor=LIGHT["paper"], markeredgewidth=2)  # fmt: skip
    axes.set_xlabel("share of the model")
    axes.set_ylabel("loss minus that at share 0, nats per token")
    return panel
