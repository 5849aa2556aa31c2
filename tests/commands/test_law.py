"""`megatron-cpt law`, on curves made from known constants and, where they are, on public ones."""

import os
from pathlib import Path

import numpy as np
import orjson
import pytest

from megatron_cpt.commands import law
from megatron_cpt.config.errors import BadInput
from megatron_cpt.scaling_law.areas import annealing_areas, forward_areas
from megatron_cpt.scaling_law.laws import annealing_law

SHARED = Path(os.environ.get("MEGATRON_CPT_SHARED", Path(__file__).parents[3] / "shared"))
PUBLIC = SHARED / "data" / "loss_curves_mpl"
FITTED = ("cosine_24000", "constant_24000", "wsdcon_9")
UNSEEN = ("constant_72000", "cosine_72000", "wsd_20000_24000", "wsdld_20000_24000", "wsdcon_3", "wsdcon_18")


def write_curve(path: Path, rates: np.ndarray, every: int = 100) -> Path:
    """A curve of the annealing law with constants 3, 0.5, 0.5, 0.4, from the first update on."""
    losses = annealing_law(forward_areas(rates), annealing_areas(rates), 3.0, 0.5, 0.5, 0.4)
    rows = [f"{step},{rates[step - 1]},{losses[step - 1]}" for step in range(1, len(rates) + 1, every)]
    path.write_text("\n".join(["step,lr,loss", *rows]) + "\n")
    return path


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
        assert set(row) == {"law", "parameters", "heldout"}
        assert set(row["heldout"]) == {"r2", "mae", "rmse", "prede", "worste"}
    assert by_name["annealing"]["heldout"]["mae"] < 1e-4
    assert by_name["annealing"]["parameters"]["gain"] == pytest.approx(0.4, rel=0.02)


def test_fit_then_predict(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    curve = write_curve(tmp_path / "a.csv", cosine(4001))
    fitted = str(tmp_path / "law.json")
    assert law.main(["fit", str(curve), "--law", "annealing", "--output", fitted]) == 0
    assert law.main(["predict", fitted, str(curve), "--output", str(tmp_path / "out.csv")]) == 0
    rows = (tmp_path / "out.csv").read_text().splitlines()
    assert rows[0] == "curve,step,loss,predicted" and len(rows) == 42
    _, _, loss, predicted = rows[-1].split(",")
    assert float(predicted) == pytest.approx(float(loss), abs=1e-4)
    assert "weakly identified" not in capsys.readouterr().out


def test_a_study_too_short_for_the_decay_has_it_fitted(tmp_path: Path):
    short = write_curve(tmp_path / "a.csv", cosine(1001), every=20)
    law.main(["fit", str(short), "--law", "annealing", "--output", str(tmp_path / "law.json")])
    assert "decay" in orjson.loads((tmp_path / "law.json").read_bytes())["standard_errors"]


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
