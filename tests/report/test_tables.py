"""Tables of the report."""

from pathlib import Path

from megatron_cpt.gap.compare import ArmDifference
from megatron_cpt.report.figures import curves_by_set
from megatron_cpt.report.read import read_runs
from megatron_cpt.report.tables import MINUS, difference_table, gap_table, mixture_table, plan_tables
from tests.report.synthetic import write_run


def test_gap_figures_of_both_runs_side_by_side(tmp_path: Path):
    runs = read_runs([write_run(tmp_path / "naive", False), write_run(tmp_path / "mitigated", True)])
    table = gap_table(curves_by_set([run.validation for run in runs]), runs)
    assert table.count("not recovered") == 1
    assert table.count("328K") == 1  # the recovery of the mitigated run: 80 steps of 4,096 tokens
    assert table.count("yes <span") == 2 and table.count("no <span") == 2
    assert f"{MINUS}1.99" in table


def test_tokens_shares_and_epochs_of_the_sources(tmp_path: Path):
    (run,) = read_runs([write_run(tmp_path / "mitigated", True)])
    table = mixture_table(run.training)
    assert "737,280" in table and "70.31 %" in table and "2.458" in table


def test_a_plan_is_shown_as_it_is_and_escaped():
    blend = {"sequences": 8192, "sources": [{"name": "<b>", "epochs": 1.5}, {"cap": None}]}
    plan = {"steps": 1024, "model": {"layers": 4}, "blend": blend, "warnings": []}
    tables = plan_tables(plan)
    assert "1,024" in tables and "model.layers" in tables and "8,192" in tables
    assert "<h3 class='run'>blend.sources</h3>" in tables
    assert "&lt;b&gt;" in tables and "<b>" not in tables
    assert "none" in tables and "1.5" in tables


def test_areas_of_arms_differ_in_counts_of_tokens_and_losses_in_nats() -> None:
    area = ArmDifference("general", "area", ("a", "b"), -507_712.0, 1_200.0)
    depth = ArmDifference("general", "depth", ("a", "b"), 0.39)
    shown = difference_table([area, depth])
    assert f"{MINUS}508K" in shown and "± 1.2K" in shown and "+0.3900" in shown
