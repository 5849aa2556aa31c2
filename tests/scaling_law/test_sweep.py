"""Sweeps: every arm checked before anything is written, one script that goes on where it was."""

import os
import signal
import subprocess
import time
from functools import partial
from pathlib import Path

import pytest
import yaml

from megatron_cpt.commands import sweep as command
from megatron_cpt.commands.dispatch import main
from megatron_cpt.config.errors import BadInput
from megatron_cpt.config.load import load_config
from megatron_cpt.runs.processes import children
from megatron_cpt.scaling_law.sweep import arm_name, decay_is_fitted, pilot_sweep, read_sweep, script_text, write_sweep

RUN = {
    "run": {"folder": "unused"},
    "model": {"hf": "base"},
    "data": {
        "sequence_length": 128,
        "sources": {"new": {"paths": ["new"]}, "old": {"paths": ["old"], "role": "replay"}},
        "replay_ratio": 0.1,
    },
    "training": {"tokens": "10 steps", "global_batch_size": 8},
    "schedule": {"peak_lr": 1e-3},
}


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    Path("run.yaml").write_text(yaml.safe_dump(RUN))
    return tmp_path


def test_arms_times_seeds(here: Path, capsys: pytest.CaptureFixture[str]):
    grid = {"data.replay_ratio": [0, 0.05], "schedule.peak_lr": ["1e-3", "2e-3"]}
    Path("arms.yaml").write_text(yaml.safe_dump({"config": "run.yaml", "folder": "out", "grid": grid, "seeds": [1, 2]}))
    assert command.main(["arms.yaml"]) == 0
    assert "8 runs: 4 arms, 2 seeds" in capsys.readouterr().out
    configs = sorted(Path("out/configs").glob("*.yaml"))
    assert len(configs) == 8
    one = load_config("out/configs/replay_ratio-0.05-peak_lr-2e-3-seed-2.yaml")
    assert (one.data.replay_ratio, one.schedule.peak_lr, one.run.seed) == (0.05, 2e-3, 2)
    assert one.run.folder == "out/runs/replay_ratio-0.05-peak_lr-2e-3-seed-2"
    assert len({load_config(path).run.folder for path in configs}) == 8

    # The same sweep again changes nothing; what others wrote, and a script that was edited, are kept.
    assert command.main(["arms.yaml"]) == 0
    script = Path("out/run.sh")
    script.write_text(script.read_text() + "# my partition\n")
    with pytest.raises(BadInput, match=r"run\.sh: is there already"):
        command.main(["arms.yaml"])
    assert "my partition" in script.read_text()
    script.unlink()
    assert command.main(["arms.yaml"]) == 0


def test_an_arm_may_have_a_name(here: Path, capsys: pytest.CaptureFixture[str]):
    sources = {"new": {"paths": ["new"], "epochs": 4}}
    arms = [{"name": "base"}, {"name": "new_alone", "data.sources": sources, "data.replay_ratio": None}]
    Path("arms.yaml").write_text(yaml.safe_dump({"config": "run.yaml", "folder": "out", "arms": arms, "seeds": [1, 2]}))
    assert command.main(["arms.yaml"]) == 0
    names = ["base-seed-1", "base-seed-2", "new_alone-seed-1", "new_alone-seed-2"]
    assert sorted(path.stem for path in Path("out/configs").glob("*.yaml")) == names
    one = load_config("out/configs/new_alone-seed-2.yaml")
    assert (one.data.sources["new"].epochs, one.run.folder) == (4, "out/runs/new_alone-seed-2")
    # What it sets of `run` leaves folder and seed to the sweep.
    logged = {"config": "run.yaml", "folder": "logged", "arms": [{"run": {"log_interval": "1 steps"}}], "seeds": [3]}
    Path("arms.yaml").write_text(yaml.safe_dump(logged))
    assert command.main(["arms.yaml"]) == 0
    assert "1 run: 1 arm, 1 seed; configurations" in capsys.readouterr().out
    assert "# 1 run, from" in Path("logged/run.sh").read_text()
    run = load_config("logged/configs/seed-3.yaml").run
    assert (run.folder, run.seed, run.log_interval.amount) == ("logged/runs/seed-3", 3, 1)


NAMED = "another arm has this name"


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ({"arms": [{"run.seed": 7, "data.replay_ratio": 0.3}]}, ["arms: run.seed: is set for every run, from `seeds`"]),
        ({"arms": [{"run.folder": "x"}]}, ["arms: run.folder: is set for every run, below `folder`"]),
        ({"arms": [{"run": {"seed": 7, "folder": "x"}}]}, ["run.seed: is set", "run.folder: is set"]),
        ({"grid": {"run.seed": [1, 2]}}, ["grid: run.seed: is set for every run, from `seeds`"]),
        ({"grid": {"run.folder": ["a"], "data.replay_ratio": [0]}}, ["grid: run.folder: is set"]),
        ({"grid": {"name": ["a", "b"]}}, ["grid: name: is no setting: the arms of a grid are named by their values."]),
        ({"grid": {"data.replay_ratio": [0, 0.1, 0.0]}}, ["grid: data.replay_ratio: 0.0 is there twice."]),
        ({"arms": [{}], "seeds": [1, 1]}, ["seeds: 1 is there twice."]),
        ({"arms": [{"name": "a"}, {"name": "A", "data.replay_ratio": 0.3}]}, [f"name: A: {NAMED}"]),
        ({"arms": [{"name": "a"}, {"name": "a"}]}, [f"name: a: {NAMED}"]),
        ({"arms": [{"name": "a/b"}, {"name": ""}]}, ["name: 'a/b': a name holds letters", "name: '': a name holds"]),
        ({"arms": [{"name": "é" * 61}]}, ["is longer than 120 bytes"]),
        ({"arms": [{"name": 5}, {"name": None}]}, ['name: 5: a name is a text. Put quotes around it: "5".', "None"]),
        ({"arms": [{"nam": "a"}]}, ["arms: nam: is not a setting. The nearest is `name`."]),
        ({"arms": [{1: "a"}]}, ["arms: 1: a setting is a text."]),
        ({"arms": [{"data.replay_ratio": 0.1}, {"data.replay_ratio": 0.1}]}, ["two arms have these values"]),
        ({"arms": [{"model.hf": "a/b"}, {"model.hf": "A b"}]}, ["hf-A_b: two arms have these values, or values that"]),
        ({"arms": [{}, {"data.sources": {"new": {"paths": ["new" * 60]}}}]}, ["it is longer than 120 bytes"]),
        # What `plan` says without data, with the processes of the sweep; of some runs with their name.
        ({"arms": [{}], "nproc": 3}, ["- training.global_batch_size = 8: it should be a multiple of"]),
        (
            {"grid": {"schedule.kind": ["cosine", "infinite"]}},
            ["schedule.plateau_lr (kind-infinite-seed-1 and 1 more): "],
        ),
    ],
)
def test_what_defeats_a_sweep_is_refused_and_nothing_written(
    here: Path, content: dict, said: list[str], capsys: pytest.CaptureFixture[str]
):
    Path("arms.yaml").write_text(yaml.safe_dump({"config": "run.yaml", "folder": "out", "seeds": [1, 2]} | content))
    assert main(["sweep", "arms.yaml"]) == 2
    error = capsys.readouterr().err
    assert all(part.removeprefix("- ") in error for part in said), error
    assert not Path("out").exists()


def test_a_disk_that_takes_a_part_has_nothing_written(
    here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    def refusing(path: Path, content: str) -> None:
        if path.stem == "second-seed-1":  # an encrypted folder takes shorter names than others
            raise OSError(36, "File name too long", str(path))
        path.write_text(content)

    monkeypatch.setattr("megatron_cpt.scaling_law.sweep.write_durably", refusing)
    Path("arms.yaml").write_text(
        yaml.safe_dump({"config": "run.yaml", "folder": "out", "arms": [{"name": "first"}, {"name": "second"}]})
    )
    assert main(["sweep", "arms.yaml"]) == 2
    assert "second-seed-1.yaml: cannot be made: File name too long." in capsys.readouterr().err
    assert not Path("out").exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--schedule", "piecewise,constant"], ["schedule.pieces is empty (kind-piecewise-seed-1)", "in an ARMS.yaml"]),
        (["--schedule", "infinite"], ["schedule.plateau_lr", "--schedule infinite: sets `schedule.kind` alone"]),
        (["--nproc", "3"], ["training.global_batch_size = 8: it should be a multiple of"]),
        (["--replay", "0,0"], ["--replay 0,0: 0.0 is there twice."]),
        (["--schedule", "cosine,cosine"], ["--schedule cosine,cosine: cosine is there twice."]),
    ],
)
def test_pilots_that_could_not_start_are_refused(
    here: Path, words: list[str], said: list[str], capsys: pytest.CaptureFixture[str]
):
    assert main(["law", "sweep", "run.yaml", "--fit-steps", "20", "--output", "out", *words]) == 2
    error = capsys.readouterr().err
    assert all(part in error for part in said), error
    assert not Path("out").exists()


def test_phases_that_pilots_do_not_reach_are_told(here: Path, capsys: pytest.CaptureFixture[str]):
    phases = [{"from_tokens": 0, "replay_ratio": 0.5}, {"from_tokens": "30 steps", "replay_ratio": 0.1}]
    run = RUN | {"data": RUN["data"] | {"phases": phases}, "training": RUN["training"] | {"tokens": "60 steps"}}
    Path("run.yaml").write_text(yaml.safe_dump(run))
    for steps, told in ((20, True), (40, False)):
        words = ["--fit-steps", str(steps), "--output", str(steps), "--peak-lr", "1e-3,2e-3"]
        assert main(["law", "sweep", "run.yaml", *words]) == 0
        note = f"note: data.phases.1, from_tokens = 30 steps, is not reached by runs of {steps} steps."
        assert capsys.readouterr().out.count(note) == told


def test_faults_of_every_arm_come_at_once_and_nothing_is_written(here: Path):
    arms = [{"data.replay_ratio": 1.5}, {"schedule.peak_lr": -1}, {"schedule.kind": "cosine"}]
    Path("arms.yaml").write_text(yaml.safe_dump({"config": "run.yaml", "folder": "out", "arms": arms}))
    with pytest.raises(BadInput) as error:
        write_sweep(read_sweep(Path("arms.yaml")))
    assert "replay_ratio" in str(error.value) and "peak" in str(error.value)
    assert not Path("out").exists()


@pytest.mark.parametrize(
    "content",
    [
        {"config": "run.yaml", "folder": "out"},
        {"config": "run.yaml", "folder": "out", "arms": [{}], "grid": {"a": [1]}},
        {"config": "run.yaml", "folder": "out", "arms": [{}], "sedes": [1]},
        {"config": "run.yaml", "folder": "out", "arms": [{}], "seeds": 2},
        {"folder": "out", "arms": [{}]},
    ],
)
def test_files_that_are_no_sweep(here: Path, content: dict):
    Path("arms.yaml").write_text(yaml.safe_dump(content))
    with pytest.raises(BadInput):
        read_sweep(Path("arms.yaml"))


def test_pilot_runs(here: Path):
    sweep = pilot_sweep(Path("run.yaml"), Path("out"), {"data.replay_ratio": [0, 0.5]}, seeds=2, fit_steps=5000)
    configs = [load_config(path) for path in write_sweep(sweep)]
    assert [config.data.replay_ratio for config in configs] == [0, 0, 0.5, 0.5]
    assert {config.total_steps for config in configs} == {5000}
    assert str(configs[0].validation.eval_interval.every) == "100 steps"
    assert decay_is_fitted(1999) and not decay_is_fitted(2001)


def run_script(here: Path, codes: str, **environment: str) -> tuple[int, list[str]]:
    """Runs the script with a megatron-cpt that notes its words and answers with the next code."""
    tool = here / "bin" / "megatron-cpt"
    tool.parent.mkdir(exist_ok=True)
    (here / "codes").write_text(codes)
    tool.write_text('#!/bin/bash\necho "$@" >> said\nread code < codes; sed -i 1d codes; exit $code\n')
    tool.chmod(0o755)
    (here / "run.sh").write_text(script_text([Path("a.yaml"), Path("b c.yaml")], 2))
    (here / "said").unlink(missing_ok=True)
    path = f"{tool.parent}:{os.environ['PATH']}"
    code = subprocess.run(["bash", "run.sh"], cwd=here, env={"PATH": path, **environment}, capture_output=True)
    return code.returncode, (here / "said").read_text().splitlines()


def test_the_script_here_and_on_slurm(here: Path):
    both = ["train a.yaml --nproc 2", "train b c.yaml --nproc 2"]
    assert run_script(here, "0\n0\n") == (0, both)
    assert run_script(here, "2\n0\n") == (2, both)
    assert run_script(here, "75\n0\n") == (75, both[:1])
    assert run_script(here, "0\n", SLURM_ARRAY_TASK_ID="1") == (0, both[1:])


@pytest.mark.parametrize(
    ("end", "code"),
    [("trap 'sleep 0.5; echo saved >> said; exit 75' TERM", 75), ("trap 'exit 1' TERM", 1), ("", 75)],
    ids=["saves", "fails", "has not begun to train"],
)
def test_what_ends_the_script_ends_its_run_and_is_waited_for(here: Path, end: str, code: int):
    tool = here / "bin" / "megatron-cpt"
    tool.parent.mkdir()
    tool.write_text(f'#!/bin/bash\n{end}\necho "$@" >> said\nfor i in {{1..100}}; do sleep 0.1; done\n')
    tool.chmod(0o755)
    (here / "run.sh").write_text(script_text([Path("a.yaml"), Path("b.yaml")], 2))
    environment = {"PATH": f"{tool.parent}:{os.environ['PATH']}"}
    heard = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)  # ignored where the tests run in the background
    for number in (signal.SIGTERM, signal.SIGINT):
        (here / "said").unlink(missing_ok=True)
        with subprocess.Popen(["bash", "run.sh"], cwd=here, env=environment, preexec_fn=heard) as script:
            while not (here / "said").exists():
                time.sleep(0.02)
            [run] = children(script.pid)
            script.send_signal(number)
            assert script.wait(5) == code
        assert not Path(f"/proc/{run}").exists()
        saved = ["saved"] if "saved" in end else []
        assert (here / "said").read_text().splitlines() == ["train a.yaml --nproc 2", *saved]


def test_names_are_file_names():
    assert arm_name({"data.replay_ratio": 0.05, "model.hf": "a/b c"}) == "replay_ratio-0.05-hf-a_b_c"
