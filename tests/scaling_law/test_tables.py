"""Tables of final losses: read, fitted by the laws of mixtures and forgetting, and chosen from."""

from pathlib import Path

import numpy as np
import pytest

from megatron_cpt.config.errors import BadInput
from megatron_cpt.runs.folder import write_json
from megatron_cpt.scaling_law.fit import fit_law
from megatron_cpt.scaling_law.laws import domain_pretraining_law, forgetting_law, mixing_law
from megatron_cpt.scaling_law.table_choice import ranked_mixtures
from megatron_cpt.scaling_law.tables import (
    CRITICAL_RATIO,
    Table,
    critical_shares,
    fitted_tables,
    left_out_rows,
    read_table,
    read_table_fits,
    table_document,
)


def grid(ratios: list[float], tokens: list[float]) -> tuple[np.ndarray, np.ndarray]:
    found = np.array([(ratio, count) for count in tokens for ratio in ratios])
    return found[:, 0], found[:, 1]


def table(name: str, losses: np.ndarray, start: float, **columns: np.ndarray) -> Table:
    named = {key.replace("share_", "share:"): value for key, value in columns.items()}
    return Table(name, losses, np.full(len(losses), start), named, tuple(map(str, range(len(losses)))))


def test_a_table_is_read_and_what_is_missing_stays_missing(tmp_path: Path):
    path = tmp_path / "t.csv"
    path.write_text("run,tokens,replay_ratio,loss:general,start:general,loss:code\na,1e9,0,3.1,3.0,2.0\nb,2e9,.5,3,,\n")
    tables = read_table(path)
    assert list(tables) == ["general", "code"]
    assert tables["general"].columns["tokens"].tolist() == [1e9, 2e9]
    assert np.isnan(tables["general"].starts[1]) and np.isnan(tables["code"].losses[1])
    assert tables["general"].shares["replay"].tolist() == [0, 0.5]
    path.write_text("tokens,loss:a\n1e9,x\n0,2\n")
    with pytest.raises(BadInput, match=r"(?s)line 3.*line 2"):
        read_table(path)
    path.write_text("tokens,losses\n1e9,2\n")
    with pytest.raises(BadInput, match="losses"):
        read_table(path)


def test_whether_a_set_is_like_the_replay_shows_in_the_fit_also_where_longer_runs_have_more_of_it():
    """Losses fall with tokens, and here replay rises with tokens: a domain set must not be taken for a general one."""
    tokens = np.repeat([1e9, 2e9, 4e9, 8e9, 16e9, 32e9], 2)
    ratio = np.array([0, 0.1, 0.1, 0.2, 0.2, 0.3, 0.3, 0.4, 0.4, 0.5, 0.5, 0.6])
    constants = (2.0, 0, 0.3, 1.5, 0.05, 0.3, 0.4, 0.1, 0.5)
    losses = domain_pretraining_law(1.0, tokens / 1e9, 1 - ratio, *constants)
    fits = fitted_tables("d-cpt", {"domain": table("domain", losses, 3.9, tokens=tokens, replay_ratio=ratio)}, 0)
    assert fits.own_is_replay == {"domain": False}
    assert fits.second["domain"].objective > 3 * fits.fits["domain"].objective
    asked = table("domain", np.full(2, np.nan), 3.9, tokens=np.full(2, 32e9), replay_ratio=np.array([0.0, 0.6]))
    truth = domain_pretraining_law(
        1.0, np.full(2, 32.0), np.array([1, 0.4]), 2.0, 0, 0.3, 1.5, 0.05, 0.3, 0.4, 0.1, 0.5
    )
    assert fits.fits["domain"].predict(asked) == pytest.approx(truth, abs=0.02)


@pytest.mark.ci
def test_d_cpt_predicts_rows_left_out_and_finds_the_most_new_data_within_a_bound(tmp_path: Path):
    ratio, tokens = grid([0.0, 0.1, 0.2, 0.5, 0.8, 1.0], [0.5e9, 1e9, 2e9, 4e9])
    noise = np.random.default_rng(1).normal(0, 0.001, (2, len(ratio)))
    general = domain_pretraining_law(1.0, tokens / 1e9, ratio, 2.7, 0, 0.3, 0.1, 0.2, 0.3, 0.1, 0.1, 0.5) + noise[0]
    domain = domain_pretraining_law(1.0, tokens / 1e9, 1 - ratio, 1.9, 0, 0.3, 0.4, 0.2, 0.3, 0.4, 0.1, 0.5) + noise[1]
    tables = {
        "general": table("general", general, 2.85, tokens=tokens, replay_ratio=ratio),
        "domain": table("domain", domain, 3.0, tokens=tokens, replay_ratio=ratio),
    }
    fits = fitted_tables("d-cpt", tables, draws=0)
    assert fits.own_is_replay == {"general": True, "domain": False}
    assert np.abs(left_out_rows(fits.fits["domain"].law, tables["domain"])).mean() < 0.01
    write_json(tmp_path / "law.json", table_document(fits))
    fits = read_table_fits(tmp_path / "law.json")
    best = ranked_mixtures(fits, {"tokens": 3e9}, {"domain": 1.0}, {"general": 0.05})[0]
    truth = domain_pretraining_law(1.0, 3.0, np.linspace(0, 1, 101), 2.7, 0, 0.3, 0.1, 0.2, 0.3, 0.1, 0.1, 0.5) - 2.85
    assert best.columns["replay_ratio"] == pytest.approx(float(np.linspace(0, 1, 101)[truth <= 0.05][0]), abs=0.05)
    assert best.broken == () and best.unsure == ()  # without draws a band is a line
    # Read 30 times, 0.1B tokens of new text are worth less: the domain loss is higher.
    repeated = ranked_mixtures(fits, {"tokens": 3e9}, {"domain": 1.0}, {}, domain_tokens=0.1e9)
    fresh = ranked_mixtures(fits, {"tokens": 3e9}, {"domain": 1.0}, {})
    assert repeated[0].losses["domain"][0] > fresh[0].losses["domain"][0] + 0.005


def test_the_mixing_law_finds_the_best_of_three_sources():
    shares = np.random.default_rng(2).dirichlet(np.ones(3), 24)
    names = ("web", "books", "code")
    planted = {"a": (1.5, 1.0, [0.0, -3.0, 1.0]), "b": (2.0, 0.5, [0.0, 1.0, -4.0])}
    tables = {
        key: table(key, mixing_law(shares, floor, scale, np.array(slopes)), np.nan,
                   **{f"share_{name}": shares[:, number] for number, name in enumerate(names)})
        for key, (floor, scale, slopes) in planted.items()
    }  # fmt: skip
    fits = fitted_tables("mixing", tables, draws=0)
    assert fits.sources == names
    best = ranked_mixtures(fits, {}, {"a": 0.5, "b": 0.5}, {})[0]
    fine = np.random.default_rng(3).dirichlet(np.ones(3), 20_000)
    truth = sum(mixing_law(fine, floor, scale, np.array(slopes)) for floor, scale, slopes in planted.values()) / 2
    assert best.objective == pytest.approx(float(truth.min()), abs=0.01)


def test_forgetting_with_a_measured_start_is_recovered():
    ratio, tokens = grid([0.0, 0.001, 0.01, 0.05], [1e7, 3e7, 1e8])
    losses = forgetting_law(1.0, tokens * (1 - ratio) / 1e9, ratio, 3.0, 0.8, 0.4, 800.0, 0.3)
    fit = fitted_tables(
        "forgetting", {"general": table("general", losses, 3.0, tokens=tokens, replay_ratio=ratio)}, 0
    ).fits["general"]
    assert fit.parameters["injection_gain"] == pytest.approx(800, rel=0.05)
    assert fit.parameters["exponent"] == pytest.approx(0.4, rel=0.02) and "start" in fit.held


def test_critical_shares_by_hand_and_their_law():
    # A rise of 0.1 R - 0.05 log2(T) is 0.04 at R = 0.4 + 0.5 log2(T).
    ratio, tokens = grid([0.2, 0.4, 0.6, 0.8, 1.0], [0.22e9, 0.25e9, 0.27e9, 0.3e9])
    rise = 0.1 * (1 - ratio) - 0.05 * np.log2(tokens / 0.2e9)
    found = critical_shares(table("general", 3.0 + rise, 3.0, tokens=tokens, replay_ratio=ratio), tolerance=0.04)
    lengths = np.array([1.1, 1.25, 1.35, 1.5])
    np.testing.assert_allclose(found.losses, 0.4 + 0.5 * np.log2(lengths), atol=1e-9)
    fit = fit_law(CRITICAL_RATIO, [found], starts=16)
    between = table("general", np.full(1, np.nan), np.nan, tokens=np.array([0.26e9]))
    assert fit.predict(between)[0] == pytest.approx(0.4 + 0.5 * np.log2(1.3), abs=0.002)
    with pytest.raises(BadInput, match="start:general"):
        critical_shares(table("general", 3.0 + rise, np.nan, tokens=tokens, replay_ratio=ratio))
    with pytest.raises(BadInput, match="three"):
        critical_shares(table("general", 3.0 + rise, 3.0, tokens=tokens, replay_ratio=ratio), tolerance=1.0)


def test_a_law_of_a_table_that_lacks_its_columns_is_refused():
    ratio = np.array([0.0, 0.5, 1.0])
    with pytest.raises(BadInput, match="tokens"):
        fitted_tables("d-cpt", {"a": table("a", ratio + 1, 1.0, replay_ratio=ratio)}, 0)
