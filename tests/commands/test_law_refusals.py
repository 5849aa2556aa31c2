"""What `megatron-cpt law` refuses: runs that cannot be compared, values that cannot be, options that have no effect."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import orjson
import pytest

from megatron_cpt.commands import dispatch, law
from megatron_cpt.config.errors import BadInput

STEPS = 200


def write_run(
    folder: Path,
    replay: float = 0.0,
    identity: str = "a",
    tokens_per_step: int = 1000,
    start: float = 3.0,
    history: float | None = 2.0,
    loss_at: Callable[[int], float] = lambda step: 3.0 - step / 1000,
    rate_at: Callable[[int], float] = lambda step: 1e-3 * (1 - step / 400),
) -> str:
    """A run folder of two sets, with an evaluation in every 20 of 200 steps."""
    folder.mkdir(parents=True)
    records: list[dict] = [{"kind": "validation", "set": name, "identity": identity, "step": 0, "loss": start}
                           for name in ("general", "domain")]  # fmt: skip
    for step in range(1, STEPS + 1):
        records.append({"kind": "train", "step": step, "learning_rate": rate_at(step), "tokens": step * 1000})
        if step % 20 == 0:
            records += [
                {"kind": "validation", "set": name, "identity": identity, "step": step, "loss": loss_at(step)}
                for name in ("general", "domain")
            ]
    (folder / "records.jsonl").write_bytes(b"".join(orjson.dumps(record) + b"\n" for record in records))
    sources = [{"name": role, "role": role, "share": share, "sequences": share * 1000}
               for role, share in (("domain", 1 - replay), ("replay", replay))]  # fmt: skip
    plan = {"blend": {"sources": sources}, "tokens_per_step": tokens_per_step}
    (folder / "plan.json").write_bytes(orjson.dumps(plan))
    names = ("forward_area", "annealing_area", "peak_learning_rate", "final_learning_rate")
    (folder / "lineage.json").write_bytes(orjson.dumps({f"parent_{name}": history for name in names}))
    return str(folder)


def refused(words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> str:
    """The one error with which a command ends, exit status 2, before anything is written or fitted."""
    before = sorted(tmp_path.rglob("*"))
    capsys.readouterr()
    page = [] if "--law" in words else ["--html", str(tmp_path / "out.html")]
    assert dispatch.main(["law", *words, "--output", str(tmp_path / "out.json"), *page]) == 2
    said = capsys.readouterr()
    assert said.out == "" and sorted(tmp_path.rglob("*")) == before
    return said.err


def test_runs_that_cannot_be_compared_are_not_fitted_together(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    alike = [write_run(tmp_path / "a"), write_run(tmp_path / "b", replay=0.2)]

    def said(*others: str, more: tuple[str, ...] = ()) -> str:
        return refused(["fit", *alike, *others, *more], tmp_path, capsys)

    other = said(write_run(tmp_path / "c", identity="b", start=3.5))
    assert "c: general, domain: are on other sequences, or other labels of them, than in a" in other
    assert "before the first update" not in other  # a loss of other sequences says nothing of the model
    batch = said(write_run(tmp_path / "d", tokens_per_step=4000))
    assert "d: 4,000 tokens a step: a has 1,000, and the constants of a law hold for one batch size" in batch
    unlike = said(write_run(tmp_path / "e", start=3.5))
    assert "e: general is 3.5000 before the first update: it is 3.0000 in a" in unlike
    assert "has the same history and size: the runs began from other models" in unlike
    unknown = [write_run(tmp_path / name, start=start, history=None) for name, start in (("f", 3.0), ("g", 3.5))]
    assert "g: general is 3.5000 before the first update: it is 3.0000 in f, and nothing tells" in said(*unknown)
    again = said(f"{tmp_path}/./a/")
    assert f"./a/: is given twice, first as {tmp_path}/a: its points would count twice" in again
    for law_name in ("d-cpt", "mixing"):
        assert "c: general, domain: are on other" in said(str(tmp_path / "c"), more=("--law", law_name))
        assert "e: general is 3.5000" in said(str(tmp_path / "e"), more=("--law", law_name))
        assert "is given twice" in said(alike[0], more=("--law", law_name))


def test_another_batch_size_is_a_warning_for_laws_of_tokens(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    runs = [write_run(tmp_path / "a"), write_run(tmp_path / "b", replay=0.2, tokens_per_step=4000)]
    with pytest.raises(BadInput, match="are fewer than the"):
        law.main(["fit", *runs, "--law", "mixing", "--set", "general"])
    assert "WARNING: the runs have 1,000, 4,000 tokens a step. mixing knows tokens alone" in capsys.readouterr().out


def test_what_may_differ_between_runs_of_one_law(tmp_path: Path):
    """Rounding of the first losses, checkpoints with histories of their own, the seeds of random weights."""
    for one, other in (
        ({"start": 3.0}, {"start": 3.004}),
        ({"start": 3.0}, {"start": 3.5, "history": 1.0}),
        ({"start": 9.0, "history": 0.0}, {"start": 9.1, "history": 0.0}),
    ):
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        # The last points are too few for a fit, which is what is refused: the comparison was passed.
        runs = [write_run(folder / "a/run", **one), write_run(folder / "b/run", replay=0.2, **other)]
        with pytest.raises(BadInput, match="are fewer than the"):
            law.main(["fit", *runs, "--from-step", "200"])


def test_losses_and_rates_that_cannot_be_are_named_with_their_step(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good = write_run(tmp_path / "a")
    for number, value in enumerate((0.0, -1.0)):
        run = write_run(tmp_path / f"loss{number}", loss_at=lambda step, value=value: value if step == 60 else 3.0)
        assert f"general at step 60: loss {value:g}: is not above 0" in refused(["fit", good, run], tmp_path, capsys)
    run = write_run(tmp_path / "rate", rate_at=lambda step: -1e-4 if step == 70 else 1e-4)
    assert "learning rate -0.0001 at step 70: is below 0" in refused(["fit", good, run], tmp_path, capsys)
    run = write_run(tmp_path / "still", rate_at=lambda step: 0.0)
    assert "still: has no learning rate above 0" in refused(["fit", good, run], tmp_path, capsys)
    assert "nosuch: is not a validation set of this run. It has domain, general." in refused(
        ["fit", good, "--set", "nosuch"], tmp_path, capsys
    )
    assert "nothing: is not there. Give run folders, CSV files or TensorBoard folders." in refused(
        ["fit", good, str(tmp_path / "nothing")], tmp_path, capsys
    )


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ("100,1e-4,3\n10000000000000,1e-4,2\n", "step 10000000000000: is beyond the 10,000,000 updates"),
        ("100,1e-4,3\n200,1e-4,inf\n", "line 3: step, lr or loss is out of range"),
        ("inf,1e-4,3\n", "line 2: is not step, lr and loss as numbers"),
        ("100,1e-4,3\n200,1e-4,2,9\n", "line 3: has more cells than the 3 columns"),
        ("step,lr,loss,loss\n100,1e-4,3,3\n", "loss: names two columns"),
    ],
)
def test_rows_that_cannot_be(tmp_path: Path, rows: str, said: str, capsys: pytest.CaptureFixture[str]):
    path = tmp_path / "a.csv"
    path.write_text(rows if rows.startswith("step") else "step,lr,loss\n" + rows)
    assert said in refused(["fit", str(path)], tmp_path, capsys)


def test_a_first_row_at_a_rate_of_0_is_no_point(tmp_path: Path):
    """Trainers log the first update with the rate 0 of a warm-up: S1 is 0 there, and no law has a loss."""
    steps = np.arange(0, 401, 20)
    rows = [f"{max(1, step)},{min(step, 100) * 1e-5},{3 + 0.1 * (step + 1.0) ** -0.5}" for step in steps.tolist()]
    path = tmp_path / "a.csv"
    path.write_text("step,lr,loss\n" + "\n".join(rows) + "\n")
    told = ["--output", str(tmp_path / "law.json"), "--html", str(tmp_path / "law.html")]
    assert law.main(["fit", str(path), "--draws", "0", *told]) == 0
    assert orjson.loads((tmp_path / "law.json").read_bytes())["sets"]["loss"]["points"] == len(rows) - 1


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--fix", "decay=1"], "decay=1: is outside of its bounds, 0 and 0.99999"),
        (["--fix", "decay=2"], "decay=2: is outside of its bounds"),
        (["--fix", "floor=nan"], "floor=nan: is outside of its bounds, 0 and 20"),
        (["--fix", "exponent=-1"], "exponent=-1: is outside of its bounds, 0.02 and 3"),
        (["--fix", "bend=0", "--free", "bend"], "bend: is fixed and freed"),
        (["--fix", "gain=0", "--fix", "gain=1"], "--fix gain=1: gain was given before"),
        (["--fix", "gain"], "--fix gain: is not NAME=NUMBER"),
        (["--draws", "-3"], "--draws -3: is below 0. Give 0 or more."),
        (["--draws", "1"], "--draws 1: has no spread"),
        (["--from-step", "-5"], "--from-step -5: is below 0"),
        (["--from-step", "200"], "general: 2 points: are fewer than the"),
        (["--warmup", "-1"], "--warmup -1: is below 0"),
        (["--warmup", "10"], "--warmup: is of logs: run folders hold the learning rates that were used"),
        (["--loss-tag", "loss"], "--loss-tag: is of logs"),
        (["--tolerance", "0.1"], "--tolerance: is of the critical-ratio law"),
        (["--law", "mixing", "--fix", "floor=1", "--profile"], "- --profile: has no effect on the mixing law"),
        (["--law", "mixing", "--from-step", "0"], "--from-step: has no effect on the mixing law"),
        (["--law", "d-cpt", "--tolerance", "0.1"], "--tolerance: has no effect on the d-cpt law"),
        (["--law", "mixing"], "2 rows: are fewer than the 3 parameters of the mixing law. Give more: another run"),
    ],
)
def test_options_of_a_fit_that_cannot_be(
    words: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = [write_run(tmp_path / "a"), write_run(tmp_path / "b", replay=0.2)]
    before = sorted(tmp_path.rglob("*"))
    page = [] if "mixing" in words or "d-cpt" in words else ["--html", str(tmp_path / "out.html")]
    assert dispatch.main(["law", "fit", *runs, *words, "--output", str(tmp_path / "out.json"), *page]) == 2
    assert said in capsys.readouterr().err and sorted(tmp_path.rglob("*")) == before


def test_a_value_that_the_law_itself_holds_may_be_fixed(tmp_path: Path):
    """The injection is left out at a gain of 0, which is below the bound of a search."""
    run = write_run(tmp_path / "a")
    with pytest.raises(BadInput, match="are fewer than the"):
        law.main(["fit", run, "--from-step", "200", "--fix", "injection_gain=0"])


@pytest.fixture(scope="module")
def fitted(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """A law of two sets without draws, the runs that it was fitted to, and a law of a table, without draws too."""
    folder = tmp_path_factory.mktemp("fitted")
    runs = [write_run(folder / name, replay=ratio, loss_at=lambda step, ratio=ratio: 3 - step / 1e3 + ratio / 10)
            for name, ratio in (("a", 0.0), ("b", 0.2))]  # fmt: skip
    law_file, table, table_law = (str(folder / name) for name in ("law.json", "t.csv", "table.json"))
    words = ["--draws", "0", "--output", law_file, "--html", str(folder / "law.html")]
    fixes = [part for name in ("exponent=0.5", "shift_speed=20", "shift_exponent=0.2", "bend=-5", "decay=0.99")
             for part in ("--fix", name)]  # fmt: skip
    assert law.main(["fit", *runs, *fixes, *words]) == 0
    rows = [f"{1e6 * n},{r},{2 + r / n},2.1" for n in (1, 2, 3) for r in (0.0, 0.2, 0.5)]
    Path(table).write_text("\n".join(["tokens,replay_ratio,loss:general,start:general", *rows]) + "\n")
    assert law.main(["fit", table, "--law", "mixing", "--draws", "0", "--output", table_law]) == 0
    return {"law": law_file, "run": runs[0], "table": table, "table law": table_law}


PLAN = ["--schedule", "cosine", "--peak-lr", "1e-3", "--steps", "100"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["law", *PLAN[:4], "--steps", "0"], "--steps 0: is below 1"),
        (["law", *PLAN[:4], "--steps", "10000000000000"], "--steps 10000000000000: is beyond the 10,000,000"),
        (["law", *PLAN[:2], "--peak-lr", "-1", "--steps", "9"], "--peak-lr -1: is not above 0"),
        (["law", *PLAN[:2], "--peak-lr", "nan", "--steps", "9"], "--peak-lr nan: is not above 0"),
        (["law", *PLAN[:2], "--peak-lr", "inf", "--steps", "9"], "--peak-lr inf: is not finite"),
        (["law", *PLAN, "--decay-share", "0.5"], "--decay-share: is no setting of cosine"),
        (["law", "--schedule", "constant", *PLAN[2:], "--final-share", "0.5"], "--final-share: is no setting of cons"),
        (["law", *PLAN, "--warmup", "9"], "--warmup: is of measured curves, and none is given"),
        (["law", *PLAN, "--tokens", "1B"], "--tokens: is of laws of final losses"),
        (["law", "run", *PLAN[:2], "--replay", "0"], "- --replay: has no effect on curves that were measured"),
        (["law", "run", "--final-share", "0"], "--final-share: has no effect on curves that were measured"),
        (["nothing.json", *PLAN], "nothing.json: cannot be read: No such file or directory. Give a law.json"),
        (["law", "nothing"], "nothing: is not there. Give run folders, CSV files or TensorBoard folders."),
        (["table law", *PLAN[:2]], "--schedule: has no effect on the mixing law"),
        (["table law", "table", "--tokens", "1B"], "--tokens: has no effect on a table"),
    ],
)
def test_predictions_that_cannot_be(
    fitted: dict[str, str], words: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert dispatch.main(["law", "predict", *(fitted.get(word, word) for word in words)]) == 2
    assert said in capsys.readouterr().err


def test_a_measured_run_that_the_law_is_not_of_is_refused_or_told(
    fitted: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = {
        "is on other sequences, or other labels of them, than the law": write_run(tmp_path / "a", identity="b"),
        "is 3.5000 before the first update: it was 3.0000 in a": write_run(tmp_path / "b", start=3.5),
    }
    for said, run in runs.items():
        assert dispatch.main(["law", "predict", fitted["law"], run]) == 2
        captured = capsys.readouterr()
        assert captured.out == "" and said in captured.err
    assert law.main(["predict", fitted["law"], *PLAN, "--warmup-share", "0.95"]) == 0  # a cosine has no decay behind it
    capsys.readouterr()
    larger = write_run(tmp_path / "c", tokens_per_step=4000)
    assert law.main(["predict", fitted["law"], larger]) == 0
    assert "outside what was fitted: 4,000 tokens a step (fitted 1,000)" in capsys.readouterr().out
    # An update of the fitted runs had 1,000 tokens: 200 updates read 50,000 tokens of new text four times.
    told = ["--output", str(tmp_path / "c.json"), "--html", str(tmp_path / "c.html"), "--schedule", "cosine"]
    words = ["--minimise", "general", "--replay", "0", "--domain-tokens", "50K"]
    assert law.main(["choose", fitted["law"], *words, *told]) == 0
    assert "the new text is read 4 times" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["general=-1"], "--minimise general=-1: is no weight"),
        (["general=0"], "--minimise general=0: weighs nothing"),
        (["general=nan"], "--minimise general=nan: is no weight"),
        (["general", "general=2"], "--minimise general=2: general was given before"),
        (["general", "--bound", "general=nan"], "--bound general=nan: is no bound"),
        (["general", "--show", "0"], "--show 0: is below 1"),
        (["general", "--steps", "0"], "--steps 0: is below 1"),
        (["general", "--steps", "nan"], "--steps nan: is no list of whole numbers"),
        (["general", "--steps", "1e13"], "--steps 10000000000000: is beyond the 10,000,000"),
        (["general", "--peak-lr", "inf"], "--peak-lr inf: is not finite"),
        (["general", "--tokens-per-step", "1K"], "--tokens-per-step: says nothing without --domain-tokens"),
        (["general", "--domain-tokens", "0"], "--domain-tokens 0: is not above 0"),
        (["general", "--model-size", "1B"], "--model-size: is of laws of final losses"),
    ],
)
def test_choices_that_cannot_be(
    fitted: dict[str, str], words: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert said in refused(["choose", fitted["law"], "--minimise", *words], tmp_path, capsys)


def test_choices_from_a_table_that_cannot_be(fitted: dict[str, str], capsys: pytest.CaptureFixture[str]):
    for words, said in (
        (["general=0"], "weighs nothing"),
        (["general", "--show", "0"], "--show 0: is below 1"),
        (["general", "--replay", "0.1"], "--replay: has no effect on the mixing law"),
        (["general", "--domain-tokens", "1B"], "--domain-tokens: says nothing without --tokens"),
    ):
        assert dispatch.main(["law", "choose", fitted["table law"], "--minimise", *words]) == 2
        assert said in capsys.readouterr().err


def test_a_law_of_several_sizes_is_asked_for_one_and_a_law_of_one_size_takes_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def table_law(name: str, sizes: tuple[float, ...]) -> str:
        rows = [
            f"{1e6 * n},{r},{size},{2 + r + n / 100 + 1e3 / size}"
            for n in (1, 2, 3)
            for r in (0.0, 0.5)
            for size in sizes
        ]
        (tmp_path / name).write_text("\n".join(["tokens,replay_ratio,model_size,loss:general", *rows]) + "\n")
        made = str(tmp_path / f"{name}.json")
        assert law.main(["fit", str(tmp_path / name), "--law", "forgetting", "--draws", "0", "--output", made]) == 0
        return made

    asked = ["--tokens", "2M", "--replay", "0.5"]
    several = table_law("several", (1e6, 4e6))
    for words in (["predict", several, *asked], ["choose", several, "--minimise", "general", *asked[:2]]):
        assert dispatch.main(["law", *words]) == 2
        assert "--model-size: is missing: the law was fitted to models of 1e+06 to 4e+06" in capsys.readouterr().err
    one = table_law("one", (1e6,))
    capsys.readouterr()
    assert law.main(["predict", one, *asked]) == 0
    said = capsys.readouterr().out
    assert law.main(["predict", one, *asked, "--model-size", "1M"]) == 0
    assert capsys.readouterr().out == said and "outside" not in said


def test_without_draws_there_are_no_bands(fitted: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    told = ["--output", str(tmp_path / "c.json"), "--html", str(tmp_path / "c.html")]
    words = ["--minimise", "general", "--bound", "general=9", "--schedule", "cosine", "--replay", "0,0.2"]
    assert law.main(["choose", fitted["law"], *words, *told]) == 0
    said = capsys.readouterr().out
    assert "no bands: the law was fitted with --draws 0" in said and "[" not in said and "95 %" not in said
    choice = orjson.loads((tmp_path / "c.json").read_bytes())["choice"]["sets"]["general"]
    assert choice["loss"] > 0 and choice["low"] is None and choice["high"] is None
    assert "95 % band" not in (tmp_path / "c.html").read_text()
    told = ["--output", str(tmp_path / "p.csv"), "--html", str(tmp_path / "p.html")]
    assert law.main(["predict", fitted["law"], fitted["run"], *told]) == 0
    assert "[" not in capsys.readouterr().out and "95 % band" not in (tmp_path / "p.html").read_text()
    assert (tmp_path / "p.csv").read_text().splitlines()[-1].endswith(",,")
    assert law.main(["predict", fitted["table law"], "--replay", "0.3"]) == 0
    assert law.main(["choose", fitted["table law"], "--minimise", "general", "--output", str(tmp_path / "t.json")]) == 0
    said = capsys.readouterr().out
    assert "no bands" in said and "[" not in said
