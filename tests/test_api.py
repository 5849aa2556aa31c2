"""The names that scripts use: what they cost to import, and a way through them."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from megatron_cpt import api
from tests.ranks import Ranks
from tests.train.runs import train
from tests.workshop import Workshop


def test_its_import_costs_no_torch() -> None:
    code = "import sys, megatron_cpt.api; sys.exit(bool({'torch', 'megatron', 'transformers'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_datasets_plans_and_gaps(one_rank: Ranks, workshop: Workshop, tmp_path: Path) -> None:
    prepared = api.prepare([str(workshop.folder / "domain.jsonl")], workshop.hf, tmp_path / "domain")
    dataset = api.open_dataset(tmp_path / "domain", verify=True)
    assert dataset.documents == prepared.training.documents
    assert len(dataset.tokens) == prepared.training.tokens

    path = workshop.write_config(tmp_path / "run")
    plan = api.make_plan(api.load_config(path, ["training.tokens=4 steps"]))
    assert plan.steps == 4
    places = plan.blend.order.locate(np.arange(plan.blend.total_sequences))
    assert np.bincount(places.source, minlength=2).tolist() == list(plan.blend.counts)

    one_rank.call(train, path=path, overrides=("training.tokens=4 steps",))
    figures = api.gap_of_run(tmp_path / "run")
    assert set(figures) == {"domain", "general"}
    assert figures["general"].missing is None and figures["general"].depth is not None
    curve = api.read_run(tmp_path / "run", "general")
    assert curve.rates.shape == (4,) and curve.losses[-1] == pytest.approx(
        figures["general"].baseline + figures["general"].final
    )


def test_a_law_is_fitted_and_predicts() -> None:
    rates = np.concatenate([np.linspace(1e-4, 1e-3, 20), np.full(180, 1e-3), np.linspace(1e-3, 1e-5, 100)])
    steps = np.arange(10, 301, 10)
    curve = api.Curve("made", rates, steps, 2.0 + 3.0 * np.cumsum(rates * 1e3)[steps - 1] ** -0.5)
    predicted = api.fit_law(api.LAWS["annealing"], [curve], starts=8).predict(curve)
    np.testing.assert_allclose(predicted, curve.losses, atol=0.02)


CONVERSIONS = """
import sys
from megatron_cpt import api
hf, folder = sys.argv[1:]
assert api.convert_from_hf(hf, folder + "/checkpoint") == ""
assert api.convert_to_hf(folder + "/checkpoint", folder + "/hf") == ""
difference, own = api.verify_conversion(folder + "/checkpoint", folder + "/hf")
assert difference.largest < 1e-4 and own is None, difference
try:
    api.convert_from_hf(hf, folder + "/checkpoint")
except api.BadInput as error:
    print(error)
"""


@pytest.mark.ci
def test_conversions_in_a_plain_process(workshop: Workshop, tmp_path: Path) -> None:
    script = [sys.executable, "-c", CONVERSIONS, str(workshop.hf), str(tmp_path)]
    done = subprocess.run(script, capture_output=True, text=True, check=True)
    assert done.stdout.strip().startswith(f"{tmp_path}/checkpoint: there is something here already.")
