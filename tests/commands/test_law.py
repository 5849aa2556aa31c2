"""`megatron-cpt law`, on curves made from known constants and, where they are, on public ones."""

import shutil
from pathlib import Path

import numpy as np
import orjson
import pytest
import yaml

from megatron_cpt.commands import law
from megatron_cpt.config.errors import BadInput
from megatron_cpt.config.load import config_from_dict, load_config
from megatron_cpt.planning.plan import make_plan
from megatron_cpt.scaling_law.choose import Base, Recipe
from megatron_cpt.scaling_law.continual import CONTINUAL, ON_DEMAND, SIZE_TERMS
from megatron_cpt.scaling_law.fit import Fit
from megatron_cpt.scaling_law.laws import annealing_areas, annealing_law, forward_areas, mixing_law
from megatron_cpt.scaling_law.sweep import matched_epochs
from megatron_cpt.scaling_law.tables import tables_of_runs
from tests.planning.small_run import settings
from tests.texts import SHARED

PUBLIC = SHARED / "loss_curves_mpl"
FITTED = ("cosine_24000", "constant_24000", "wsdcon_9")
HELD = {"base_gain": 0.0, "base_forward_area": 2.0, "decay": 0.999, **ON_DEMAND, **SIZE_TERMS}
PLANTED = {
    "general": dict(floor=3.0, amplitude=0.3, exponent=0.5, gain=0.2, shift_size=0.3, shift_speed=20.0,
                    shift_exponent=0.2, bend=-25.0, **HELD),
    "domain": dict(floor=2.6, amplitude=0.3, exponent=0.5, gain=0.2, shift_size=-0.6, shift_speed=50.0,
                   shift_exponent=0.15, bend=3.0, **HELD),
}  # fmt: skip
UNSEEN = ("constant_72000", "cosine_72000", "wsd_20000_24000", "wsdld_20000_24000", "wsdcon_3", "wsdcon_18")


def write_curve(path: Path, rates: np.ndarray, every: int = 100) -> Path:
    """A curve of the annealing law with constants 3, 0.5, 0.5, 0.4, from the first update on."""
    losses = annealing_law(forward_areas(rates), annealing_areas(rates), 3.0, 0.5, 0.5, 0.4)
    rows = [f"{step},{rates[step - 1]},{losses[step - 1]}" for step in range(1, len(rates) + 1, every)]
    path.write_text("\n".join(["step,lr,loss", *rows]) + "\n")
    return path


def outputs(folder: Path) -> list[str]:
    return ["--output", str(folder / "law.json"), "--html", str(folder / "law.html")]


def cosine(steps: int) -> np.ndarray:
    return 1.5e-4 * (1 + np.cos(np.pi * np.arange(steps) / steps))


def test_compare_prints_every_law_with_its_errors(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    fitted = [write_curve(tmp_path / "a.csv", cosine(4001)), write_curve(tmp_path / "b.csv", np.full(4001, 3e-4))]
    other = write_curve(tmp_path / "c.csv", cosine(8001))
    assert law.main(["compare", "--csv", *map(str, fitted), "--predict", str(other), "--json"]) == 0
    document = orjson.loads(capsys.readouterr().out)
    assert set(document) == {"laws"}
    by_name = {row["law"]: row for row in document["laws"]}
    assert set(by_name) == {"multi-power", "annealing", "annealing-rate-weighted"}
    for row in by_name.values():
        assert set(row) == {"law", "parameters", "heldout", "curves"}
        assert set(row["curves"]) == {"c"}
        assert set(row["heldout"]) == {"r2", "mae", "rmse", "prede", "worste"}
    assert by_name["annealing"]["heldout"]["mae"] < 1e-4
    assert abs(by_name["annealing"]["curves"]["c"]["end"]) < 1e-3
    assert by_name["annealing"]["parameters"]["gain"] == pytest.approx(0.4, rel=0.02)


def test_fit_then_predict(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    curve = write_curve(tmp_path / "a.csv", cosine(4001))
    fitted = str(tmp_path / "law.json")
    page = tmp_path / "law.html"
    assert law.main(["fit", str(curve), "--law", "annealing", "--output", fitted, "--html", str(page)]) == 0
    assert "Fit and residuals" in page.read_text()
    with pytest.raises(BadInput, match=r"law\.json: is there already"):
        law.main(["fit", str(curve), "--law", "multi-power", "--output", fitted])
    assert law.main(["predict", fitted, str(curve), "--output", str(tmp_path / "out.csv")]) == 0
    rows = (tmp_path / "out.csv").read_text().splitlines()
    assert rows[0] == "curve,set,step,loss,predicted,low,high" and len(rows) == 42
    _, _, _, loss, predicted, low, high = rows[-1].split(",")
    assert float(low) <= float(predicted) <= float(high)
    assert float(predicted) == pytest.approx(float(loss), abs=1e-4)
    assert "weakly identified" not in capsys.readouterr().out
    told = ["--output", str(tmp_path / "choice.json"), "--html", str(tmp_path / "choice.html")]
    words = ["--minimise", "loss", "--peak-lr", "3e-4", "--steps", "2000,4001", "--schedule", "cosine,constant"]
    assert law.main(["choose", fitted, *words, *told]) == 0
    best = orjson.loads((tmp_path / "choice.json").read_bytes())["choice"]["recipe"]
    # 3 + 0.5 S1^-0.5 at S1 = 1.2; the cosine's annealing makes up for less than half of what its smaller S1 costs.
    assert (best["kind"], best["steps"]) == ("constant", 4001)
    assert "critical point" not in capsys.readouterr().out


def test_a_study_too_short_for_the_decay_has_it_fitted(tmp_path: Path):
    short = write_curve(tmp_path / "a.csv", cosine(1001), every=20)
    law.main(["fit", str(short), "--law", "annealing", *outputs(tmp_path)])
    fitted = orjson.loads((tmp_path / "law.json").read_bytes())["sets"]["loss"]
    assert "decay" in fitted["standard_errors"]


RATIOS = (0.0, 0.05, 0.3)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Run folders of two sets that follow the continual law: new text is learnt less with replay, old kept better."""
    folder = tmp_path_factory.mktemp("runs")
    base = Base(forward_area=2.0, annealing_area=0.0, peak_rate=1e-3, final_rate=1e-4)
    made = []
    for kind, ratio in [("cosine", RATIOS[0]), ("constant", RATIOS[1]), ("cosine", RATIOS[2])]:
        curve = Recipe(kind, 1e-3, 2400, ratio).curve(base, points=40)
        run = folder / f"{kind}-{ratio}"
        run.mkdir()
        records = [
            {"kind": "train", "step": n, "learning_rate": rate} for n, rate in enumerate(curve.rates.tolist(), 1)
        ]
        for name, constants in PLANTED.items():
            start = constants["floor"] + constants["amplitude"] * 2.0 ** -constants["exponent"]
            losses = Fit(CONTINUAL, constants, 0.0, 0).predict(curve).tolist()
            for step, loss in [(0, start), *zip(curve.steps.tolist(), losses, strict=True)]:
                records.append({"kind": "validation", "set": name, "identity": name, "step": step, "loss": loss})
        (run / "records.jsonl").write_bytes(b"".join(orjson.dumps(record) + b"\n" for record in records))
        sources = [
            {"name": role, "role": role, "share": share, "sequences": share * 1000}
            for role, share in (("domain", 1 - ratio), ("replay", ratio))
        ]
        (run / "plan.json").write_bytes(orjson.dumps({"blend": {"sources": sources}}))
        lineage = {f"parent_{name}": value for name, value in (("forward_area", 2.0), ("annealing_area", 0.0))}
        lineage |= {"parent_peak_learning_rate": 1e-3, "parent_final_learning_rate": 1e-4}
        (run / "lineage.json").write_bytes(orjson.dumps(lineage))
        made.append(run)
    return made


@pytest.mark.ci
def test_runs_are_fitted_and_the_best_recipe_is_chosen(
    runs: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    fitted, choice = str(tmp_path / "law.json"), tmp_path / "choice.json"
    words = ["fit", *map(str, runs), "--draws", "4", "--output", fitted, "--html", str(tmp_path / "law.html")]
    assert law.main(words) == 0
    document = orjson.loads(Path(fitted).read_bytes())
    assert set(document["sets"]) == {"general", "domain"}
    assert document["fitted"]["replay_ratio"] == pytest.approx([0, 0.3]) and document["fitted"]["steps"] == 2400
    told = ["--output", str(choice), "--html", str(tmp_path / "choice.html")]
    chosen = ["choose", fitted, "--minimise", "domain", "--bound", "general=0.02", "--schedule", "cosine", *told]
    assert law.main(chosen) == 0
    best = orjson.loads(choice.read_bytes())["choice"]
    # The bound is met as tightly as the grid of ratios allows: with less replay it breaks.
    truth = [planted_rise("general", ratio) for ratio in np.linspace(0, 0.3, 41)]
    first = float(np.linspace(0, 0.3, 41)[np.flatnonzero(np.array(truth) <= 0.02)[0]])
    assert best["recipe"]["replay_ratio"] == pytest.approx(first, abs=0.0076)
    assert best["broken"] == [] and best["beyond"] == []
    recipes = [one["recipe"] for one in orjson.loads(choice.read_bytes())["others"]]
    assert len({tuple(recipe.values()) for recipe in recipes}) == len({r["replay_ratio"] for r in recipes})
    with pytest.raises(BadInput, match=r"(?s)cosin:.*1.5"):
        law.main(["choose", fitted, "--minimise", "domain", "--schedule", "cosin", "--replay", "0,1.5"])
    assert "Final loss against the replay ratio" in (tmp_path / "choice.html").read_text()
    capsys.readouterr()
    for file in (choice, tmp_path / "choice.html"):
        file.unlink()
    law.main(["choose", fitted, "--minimise", "general=2", "--schedule", "cosine", "--peak-lr", "1e-4,2e-3", *told])
    said = capsys.readouterr().out
    assert "weighted sum" in said and "  *\n" in said and "extrapolates: peak rate" in said
    assert "NOTE: the best replay ratio, 0.3, is the highest that was tried" in said


def planted_rise(name: str, ratio: float) -> float:
    base = Base(forward_area=2.0, annealing_area=0.0, peak_rate=1e-3, final_rate=1e-4)
    constants = PLANTED[name]
    end = Fit(CONTINUAL, constants, 0.0, 0).predict(Recipe("cosine", 1e-3, 2400, ratio).curve(base))[-1]
    return float(end - constants["floor"] - constants["amplitude"] * 2.0 ** -constants["exponent"])


def longer_run(run: Path, folder: Path) -> Path:
    """A copy of a run with one more evaluation, ten updates on."""
    longer = folder / "longer"
    shutil.copytree(run, longer)
    lines = (longer / "records.jsonl").read_bytes().splitlines()
    records = [orjson.loads(line) for line in lines]
    last = max(record["step"] for record in records)
    records += [record | {"step": record["step"] + 10} for record in records if record["step"] > last - 10]
    (longer / "records.jsonl").write_bytes(b"".join(orjson.dumps(record) + b"\n" for record in records))
    return longer


def test_a_schedule_nobody_ran_is_predicted_and_extrapolation_is_said(
    runs: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    law.main(["fit", *map(str, runs), "--draws", "0", "--set", "general", *outputs(tmp_path)])
    words = ["--schedule", "wsd", "--peak-lr", "1e-3", "--steps", "4800", "--replay", "40%"]
    assert law.main(["predict", str(tmp_path / "law.json"), *words]) == 0
    said = capsys.readouterr().out
    assert (
        "outside what was fitted: replay ratio 0.4 (fitted 0 to 0.3)" in said
        and "4800 steps (fitted up to 2400)" in said
    )
    assert (
        "warm-up over 0.01 of the steps, last rate 0.1 of the peak, wsd decays over the last 0.1 of the steps" in said
    )
    shape = ["--final-share", "0", "--decay-share", "20%", "--warmup-share", "0.02"]
    assert law.main(["predict", str(tmp_path / "law.json"), *words, *shape]) == 0
    told = capsys.readouterr().out
    assert "over 0.02 of the steps, last rate 0 of the peak, wsd decays over the last 0.2" in told
    assert told.splitlines()[-1] != said.splitlines()[-1]  # another loss
    # A measured run that lies outside is told as a schedule is that nobody ran.
    law.main(["predict", str(tmp_path / "law.json"), str(longer_run(runs[0], tmp_path))])
    assert "outside what was fitted: 2410 steps (fitted up to 2400)" in capsys.readouterr().out
    with pytest.raises(BadInput, match="more than the whole run"):
        law.main(["predict", str(tmp_path / "law.json"), *words, "--warmup-share", "0.6", "--decay-share", "0.6"])
    with pytest.raises(BadInput, match="--steps"):
        law.main(["predict", str(tmp_path / "law.json"), "--schedule", "wsd", "--peak-lr", "1e-3"])


def test_bad_curves_are_refused(tmp_path: Path):
    (tmp_path / "bad.csv").write_text("step,loss\n1,2\n")
    with pytest.raises(BadInput, match="lr"):
        law.main(["fit", str(tmp_path / "bad.csv")])
    (tmp_path / "text.csv").write_text("step,lr,loss\n1,1e-4,x\n")
    with pytest.raises(BadInput, match="line 2"):
        law.main(["fit", str(tmp_path / "text.csv")])
    with pytest.raises(BadInput, match="no fitted law"):
        law.main(["predict", str(tmp_path / "bad.csv"), str(tmp_path / "bad.csv")])


@pytest.mark.skipif(not PUBLIC.is_dir(), reason="the public loss curves of arXiv:2503.12811 are not here")
@pytest.mark.parametrize(("size", "multi_power", "annealing"), [(25, 0.00376, 0.0046), (100, 0.00435, 0.0047)])
def test_real_curves(size: int, multi_power: float, annealing: float, capsys: pytest.CaptureFixture[str]):
    folder = PUBLIC / f"csv_{size}"
    fitted, unseen = ([str(folder / f"{name}.csv") for name in names] for names in (FITTED, UNSEEN))
    law.main(["compare", "--csv", *fitted, "--predict", *unseen, "--json"])
    errors = {row["law"]: row["heldout"]["mae"] for row in orjson.loads(capsys.readouterr().out)["laws"]}
    assert errors["multi-power"] < 1.1 * multi_power
    assert errors["annealing"] < 1.1 * annealing


def test_a_law_of_a_table_is_fitted_asked_and_chosen_from(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    ratios = np.linspace(0, 1, 9)
    general = mixing_law(np.stack([1 - ratios, ratios], axis=1), 3.0, 0.4, np.array([0.0, -3.0]))
    domain = mixing_law(np.stack([1 - ratios, ratios], axis=1), 2.0, 0.1, np.array([0.0, 2.0]))
    rows = [f"{r},{g},3.2,{d}" for r, g, d in zip(ratios, general, domain, strict=True)]
    table, fitted = tmp_path / "t.csv", str(tmp_path / "law.json")
    table.write_text("\n".join(["replay_ratio,loss:general,start:general,loss:domain", *rows]) + "\n")
    assert law.main(["fit", str(table), "--law", "mixing", "--draws", "3", "--output", fitted]) == 0
    assert "rows left out" in capsys.readouterr().out
    choice = tmp_path / "choice.json"
    assert law.main(["choose", fitted, "--minimise", "domain", "--bound", "general=0", "--output", str(choice)]) == 0
    # 3 + 0.4 e^(-3 r) is 3.2 at r = 0.231; the grid is of hundredths.
    assert orjson.loads(choice.read_bytes())["choice"]["columns"]["replay_ratio"] == pytest.approx(0.24, abs=0.011)
    assert law.main(["predict", fitted, "--replay", "0.5", "--set", "general"]) == 0
    assert f"{3 + 0.4 * np.exp(-1.5):.3f}" in capsys.readouterr().out
    with pytest.raises(BadInput, match="tokens"):
        law.main(["fit", str(table), "--law", "d-cpt"])
    (tmp_path / "other.csv").write_text("share:web,loss:general\n0.5,2\n")
    with pytest.raises(BadInput, match="add up to 1"):
        law.main(["predict", fitted, str(tmp_path / "other.csv"), "--set", "general"])
    with pytest.raises(BadInput, match="nope"):
        law.main(["choose", fitted, "--minimise", "nope"])


def test_d_cpt_says_what_it_does_not_know_of_runs_that_anneal(
    runs: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copies = []
    for run in runs:
        copies.append(str(shutil.copytree(run, tmp_path / run.name)))
        lines = [orjson.loads(line) for line in (run / "records.jsonl").read_bytes().splitlines()]
        lines = [line | {"tokens": line["step"] * 10**6} for line in lines]
        # A set that is evaluated at the end alone takes no row away from the others.
        rare = {"kind": "validation", "set": "rare", "identity": "rare", "step": 2400, "loss": 2.0}
        text = b"".join(orjson.dumps(line) + b"\n" for line in [*lines, rare])
        (tmp_path / run.name / "records.jsonl").write_bytes(text)
    table = tables_of_runs(copies, of_every_evaluation=True, sets=["general"])["general"]
    assert len(table.losses) > 90 and len(tables_of_runs(copies, of_every_evaluation=True)["general"].losses) == 3
    # The last rows alone are too few for a fit, which would take its time here.
    words = ["--law", "d-cpt", "--set", "general", "--from-step", "2400", "--output", str(tmp_path / "law.json")]
    constant = [path for path in copies if "constant" in path]
    for paths, warned in ((copies, True), (constant, False)):
        with pytest.raises(BadInput, match="rows: are fewer than the"):
            law.main(["fit", *paths, *words])
        said = capsys.readouterr().out
        assert ("WARNING: the learning rate falls in 2 of 3 runs. d-cpt is of tokens alone" in said) == warned
    with pytest.raises(BadInput, match=r"(?s)nope.*They share"):
        law.main(["fit", *copies, "--law", "d-cpt", "--set", "nope"])


def test_pilots_repeat_their_sources_as_the_whole_run_does(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sections = settings(tmp_path)  # 100 steps of 256 tokens; 10,000 tokens of law, 50,000 of web, a quarter of it
    sections["data"]["sources"]["law"]["max_epochs"] = 3
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(sections))
    words = ["sweep", str(path), "--replay", "0,0.25", "--fit-steps", "50", "--output", str(tmp_path / "pilots")]
    assert law.main([*words, "--match-epochs"]) == 0
    assert "each pilot reads 50.00% of every source, as it has 50.00% of the run's tokens" in capsys.readouterr().out
    whole = make_plan(load_config(path))
    pilot = make_plan(load_config(tmp_path / "pilots/configs/replay_ratio-0.25-seed-1.yaml"))
    assert pilot.steps == 50
    epochs = [{row.name: row.epochs for row in plan.blend.rows} for plan in (whole, pilot)]
    assert epochs[0]["law"] == pytest.approx(1.92, abs=0.01)
    assert epochs[1] == pytest.approx(epochs[0], rel=0.01)
    # Targets in tokens and epochs are halved with the text.
    for target in ({"tokens": 19_200}, {"epochs": 1.92}):
        sections["data"]["sources"]["law"] = sections["data"]["sources"]["law"] | {"max_epochs": None} | target
        sections["data"] |= {"replay_ratio": None, "when_exhausted": "stop"}
        sections["data"]["sources"]["web"]["tokens"] = 6_400
        config = config_from_dict(sections)
        halved = matched_epochs(config, {"law": 10_000, "web": 50_000}, 50)
        assert halved["data.sources.law.tokens"] == 9_600 and halved["data.sources.law.epochs"] is None
        assert halved["data.sources.web.sample_per_epoch"] == {"tokens": 24_992, "resample": "fixed"}
        del sections["data"]["sources"]["law"][next(iter(target))]
    with pytest.raises(BadInput, match=r"(?s)--fit-steps 101.*less than a sequence"):
        matched_epochs(config, {"law": 10_000, "web": 20}, 101)


@pytest.mark.ci
def test_a_third_set_is_combined_of_two_and_bounded(runs: list[Path], tmp_path: Path):
    copies = []
    for run in runs:
        copy = tmp_path / run.name
        shutil.copytree(run, copy)
        lines = [orjson.loads(line) for line in (copy / "records.jsonl").read_bytes().splitlines()]
        losses = {(line["set"], line["step"]): line["loss"] for line in lines if line["kind"] == "validation"}
        lines += [line | {"set": "books", "loss": 0.6 * line["loss"] + 0.4 * losses["domain", line["step"]]}
                  for line in lines if line.get("set") == "general"]  # fmt: skip
        (copy / "records.jsonl").write_bytes(b"".join(orjson.dumps(line) + b"\n" for line in lines))
        copies.append(str(copy))
    law.main(["fit", *copies, "--combine", "books=general,domain", "--draws", "0", *outputs(tmp_path)])
    combined = orjson.loads((tmp_path / "law.json").read_bytes())["combinations"]["books"]
    assert (combined["old_weight"], combined["new_weight"]) == pytest.approx((0.6, 0.4), abs=1e-6)
    told = ["--output", str(tmp_path / "choice.json"), "--html", str(tmp_path / "choice.html")]
    words = ["--minimise", "books", "--bound", "books=0.5", "--replay", "0,0.3", "--schedule", "cosine"]
    assert law.main(["choose", str(tmp_path / "law.json"), *words, *told]) == 0
    assert "books" in orjson.loads((tmp_path / "choice.json").read_bytes())["choice"]["sets"]
    with pytest.raises(BadInput, match="twice"):
        law.main(["fit", *copies, "--combine", "books=general,general"])
