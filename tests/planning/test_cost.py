"""Hours and money of what is left of a run, and plans of data that is not on the machine."""

import json
from pathlib import Path

import pytest
import yaml

from megatron_cpt.commands.dispatch import main
from megatron_cpt.config.load import config_from_dict
from megatron_cpt.planning.cards import CARDS
from megatron_cpt.planning.cost import CostEstimate, cost_estimate
from megatron_cpt.planning.plan import make_plan
from megatron_cpt.runs.folder import write_checked_json
from tests.planning.small_run import faults_of, settings
from tests.ranks import Ranks
from tests.train.runs import train
from tests.workshop import Workshop


@pytest.fixture
def config(tmp_path: Path) -> str:
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(settings(tmp_path)))
    return str(path)


def cost_of(capsys: pytest.CaptureFixture[str], *words: str) -> dict[str, float]:
    assert main(["plan", *words, "--json"]) == 0
    found: dict[str, float] = json.loads(capsys.readouterr().out)["cost"]
    return found


def test_hours_are_flops_over_what_the_gpus_do(config: str, capsys: pytest.CaptureFixture[str]) -> None:
    words = [config, "--nproc", "4", "--gpu", "H100-80GB", "--mfu", "50%", "--price", "3"]
    assert main(["plan", *words, "--json"]) == 0
    plan = json.loads(capsys.readouterr().out)
    cost, flops = plan["cost"], plan["model"]["training_flops"]
    share = sum(one["compute_share"] for one in plan["evaluations"])
    assert cost["hours"] == pytest.approx(flops * (1 + share) / (4 * 0.5 * 989e12) / 3600)
    assert cost["gpu_hours"] == pytest.approx(4 * cost["hours"])
    assert cost["money"] == pytest.approx(3 * cost["gpu_hours"])
    assert cost["steps"] == 100 and share > 0


def test_figures_by_hand() -> None:
    """Llama-3-8B for 5B tokens on 64 H100 at 40 %: 6 x 7.5e9 FLOPs a token and attention make about 1 hour."""
    cost = CostEstimate(3179, 5 * 10**9, 0.4 * 64 * 989e12 / 51.3e9, "as said", 0.03, 64, 2.5)
    assert cost.hours == pytest.approx(5e9 * 51.3e9 * 1.03 / (0.4 * 64 * 989e12) / 3600)
    assert 2.8 < cost.hours < 3.0
    assert cost.money == pytest.approx(cost.hours * 64 * 2.5)
    assert cost.lines()[0].startswith("Left     3,179 steps, 5.00B tokens")
    assert "185 GPU-hours, cost 463." in cost.lines()[1] or "186 GPU-hours, cost 46" in cost.lines()[1]


def test_twice_the_gpus_take_half_the_time_and_the_same_money(config: str, capsys: pytest.CaptureFixture[str]) -> None:
    one, two = (cost_of(capsys, config, "--nproc", str(ranks), "--price", "2") for ranks in (2, 4))
    assert one["hours"] == pytest.approx(2 * two["hours"]) and one["money"] == pytest.approx(two["money"])


def test_a_run_that_has_begun_is_planned_by_its_own_throughput(
    one_rank: Ranks, workshop: Workshop, tmp_path: Path
) -> None:
    path = workshop.write_config(tmp_path / "run")
    one_rank.call(train, path=path, overrides=("training.tokens=12 steps",))
    config = config_from_dict(workshop.config(tmp_path / "run", training={"tokens": "30 steps"}))
    plan = make_plan(config, 1)
    cost = cost_estimate(plan, "A100-80GB", 0.4)
    assert (cost.steps, cost.tokens) == (18, 18 * config.tokens_per_step)
    assert "of this run" in cost.basis and cost.tokens_per_second < 1e7
    # On another number of ranks it says nothing.
    written = json.loads((tmp_path / "run/plan.json").read_text())
    del written["content_sha256"]
    write_checked_json(tmp_path / "run/plan.json", written | {"world_size": 2})
    assert "assumption" in cost_estimate(plan, "A100-80GB", 0.4).basis


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--gpu", "H1000"], "--gpu H1000: is no card"),
        (["--mfu", "fast"], "--mfu fast"),
        (["--mfu", "0"], "--mfu 0: is a share of the peak"),
        (["--price=-1"], "--price -1: is below 0"),
        (["--assume", "law"], "--assume law: is not NAME=TOKENS"),
        (["--assume", "law=x", "web=y"], "--assume web=y"),
        (["--assume", "books=5B"], "--assume books=5000000000: names no source"),
    ],
)
def test_what_is_wrong_is_told(config: str, words: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", config, *words]) == 2
    assert said in capsys.readouterr().err


def test_a_plan_without_the_data_is_that_with_it(
    config: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["plan", config, "--json"]) == 0
    here = json.loads(capsys.readouterr().out)
    for path in tmp_path.glob("law*"):
        path.unlink()
    assert main(["plan", config]) == 2
    capsys.readouterr()
    words = ["--assume", "law=10000", "law.validation=1000"]
    assert main(["plan", config, "--json", *words]) == 0
    there = json.loads(capsys.readouterr().out)
    assert there["evaluations"] == here["evaluations"]
    assert there["blend"]["sources"] == here["blend"]["sources"]
    assert there["cost"] == here["cost"]
    assert there["warnings"][0].startswith("assumed, not read: law 10.0K, law.validation 1.00K tokens.")


def test_an_option_of_several_values_may_be_given_several_times(
    config: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for path in tmp_path.glob("law*"):
        path.unlink()
    assert main(["plan", config, "--assume", "law=10000", "--assume", "law.validation=1000"]) == 0
    assert "assumed, not read: law 10.0K, law.validation 1.00K tokens." in capsys.readouterr().out
    assert main(["plan", config, "--assume", "law=10000", "--assume", "law=20000"]) == 2
    assert "law is given twice" in capsys.readouterr().err


def test_a_run_that_does_not_fit_the_card_is_warned_of(
    config: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["plan", config, "--json"]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert not any(warning.startswith("memory: ") for warning in plan["warnings"])  # a tiny model fits an H100
    for share, fits in ((0.89, True), (0.91, False)):
        card = write_card(tmp_path / "card.yaml", memory=plan["model"]["memory_per_rank"] / share / 2**30)
        assert main(["plan", config, "--gpu", card]) == 0
        assert (f"are estimated for the fullest rank, and {card} has " in capsys.readouterr().out) == (not fits)
    assert main(["plan", config, "--gpu", card, "--json"]) == 0
    [told] = [one for one in json.loads(capsys.readouterr().out)["warnings"] if one.startswith("memory: ")]
    assert "an estimate may fill 90%" in told
    assert "set parallel.distributed_optimizer, set training.recompute: full, lower training.micro_batch_size." in told


def write_card(path: Path, memory: float) -> str:
    """A file of a card with so many GiB."""
    path.write_text(yaml.safe_dump({"flops": 1e12, "memory": memory, "bandwidth": 1e12, "link": 1e11}))
    return str(path)


def test_validation_sets_with_a_budget_are_assumed_too(
    config: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for path in tmp_path.glob("web*"):
        path.unlink()
    assert main(["plan", config, "--assume", "web=5B"]) == 0  # web's set has 640 tokens
    assert "web" in capsys.readouterr().out
    for path in tmp_path.glob("law*"):
        path.unlink()
    assert main(["plan", config, "--assume", "web=5B", "law=1M"]) == 2  # law's has none
    assert "validation.sets.law.paths" in capsys.readouterr().err


def test_epochs_are_limited_by_what_is_assumed(config: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", config, "--assume", "law=1000", "data.sources.law.max_epochs=4"]) == 2
    assert "max_epochs" in capsys.readouterr().err


def test_buckets_by_score_cannot_be_assumed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sections = settings(tmp_path)
    sections["data"]["sources"]["law"]["quality"] = {"score": "ngram", "temperature": 1.0}
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(sections))
    assert main(["plan", str(path), "--assume", "law=1M"]) == 2
    assert "its buckets follow from the scores" in capsys.readouterr().err
    assert faults_of(sections)  # nor is it planned without the scores


def test_every_card_gives_hours(config: str, capsys: pytest.CaptureFixture[str]) -> None:
    hours = {name: cost_of(capsys, config, "--gpu", name)["hours"] for name in CARDS}
    assert min(hours.values()) > 0
    assert hours["H20-96GB"] > hours["A100-80GB"] > hours["H100-80GB"] > hours["GB200-186GB"]
