"""gap.json and the lines people read."""

import pytest

from megatron_cpt.gap.figures import GapFigures, Recovery, gap_figures
from megatron_cpt.gap.summary import MeasuredFolder, count_words, gap_document, summary_line
from tests.gap.test_figures import curve

RECOVERED = GapFigures(
    missing=None, evaluations=9, depth=0.161, depth_tokens=49_152, transient=0.161, final=-0.02, improvement=0.02,
    recovery=Recovery.RECOVERED, recovery_tokens=327_680, significant=True,
)  # fmt: skip
FORGOTTEN = GapFigures(
    missing=None, evaluations=9, depth=0.55, depth_tokens=1_048_576, transient=0.003, final=0.547,
    improvement=-0.547, recovery=Recovery.NOT_RECOVERED, significant=True,
)  # fmt: skip
LEARNT = GapFigures(
    missing=None, evaluations=9, depth=0.0, depth_tokens=0, transient=0.0, final=-1.98, improvement=1.98,
    recovery=Recovery.NOT_NEEDED,
)  # fmt: skip


def test_one_line_a_run_says_depth_transient_recovery_and_gain():
    assert summary_line("mitigated", {"general": ("general", RECOVERED), "code": ("domain", LEARNT)}) == (
        "mitigated: general rose 0.161 nats at 49.2K tokens, 0.161 of it transient, "
        "recovered at 328K tokens, -0.020 at the end; code gained 1.980 nats"
    )
    assert summary_line("naive", {"general": ("general", FORGOTTEN)}) == (
        "naive: general rose 0.550 nats at 1.05M tokens, 0.003 of it transient, not recovered, +0.547 at the end"
    )


def test_a_line_says_what_is_missing_and_what_is_noise():
    missing = GapFigures(missing="not evaluated since the first update", evaluations=1)
    assert summary_line("a", {"general": ("general", missing)}) == "a: general not evaluated since the first update"
    assert summary_line("a", {}) == "a: no validation set was evaluated"
    noisy = GapFigures(**(vars(RECOVERED) | {"significant": False}))
    assert "(within evaluation noise)" in summary_line("a", {"general": ("general", noisy)})
    flat = GapFigures(**(vars(LEARNT) | {"final": 0.004, "improvement": -0.004}))
    assert "stayed at its baseline" in summary_line("a", {"general": ("general", flat)})
    line = summary_line("a", {"general": ("general", LEARNT)})
    assert line == "a: general improved 1.980 nats, never rose above its baseline"
    topped = gap_figures(curve([3.00, 3.05, 3.00, 3.00, 3.00, 3.02, 3.04, 3.06]))
    line = summary_line("a", {"general": ("general", topped)})
    assert line.endswith("+0.060 at the end; a first rise of 0.050 nats was back at 200 tokens")


def test_the_document_keeps_none_as_none():
    document = gap_document([MeasuredFolder("a", "runs/a", [(curve([4.0, 4.1]), FORGOTTEN)])])
    figures = document["runs"][0]["sets"]["general"]
    assert figures["role"] == "general" and figures["depth"] == 0.55
    assert figures["recovery"] == "not_recovered" and figures["recovery_tokens"] is None
    assert document["units"]["area"] == "nats per token times tokens trained"


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0"),
        (512, "512"),
        (999_499, "999K"),
        (999_999, "1M"),
        (4_100_000_000, "4.1B"),
        (3e15, "3000T"),
        (None, "not recorded"),
    ],
)
def test_counts_in_three_digits(count: float | None, text: str):
    assert count_words(count) == text
