"""`megatron-cpt train`: bad input gives one clear error, exit code 2, and loses nothing."""

import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import orjson
import pytest

from megatron_cpt.commands.dispatch import main
from megatron_cpt.runs.folder import ExitCode, Status, read_status, write_status
from tests.ranks import Ranks
from tests.train.runs import train
from tests.workshop import VOCABULARY, Workshop, write_model, write_tokenizer, write_tokenizer_of

Sections = dict[str, Any]


def no_such_dataset(workshop: Workshop, folder: Path) -> Sections:
    return {"data": {"sources": {"domain": {"paths": [str(folder / "nothing")]}}, "replay_ratio": None}}


def not_a_tokenizer_folder(workshop: Workshop, folder: Path) -> Sections:
    write_model(folder / "hf")
    return {"model": {"hf": str(folder / "hf")}}


def tokenizer_of_another_dataset(workshop: Workshop, folder: Path) -> Sections:
    write_model(folder / "hf")
    write_tokenizer(folder / "hf", ["another text gives another tokenizer"] * 9)
    return {"model": {"hf": str(folder / "hf")}}


def empty_validation_set(workshop: Workshop, folder: Path) -> Sections:
    return {"validation": {"sets": {"general": {"paths": [str(folder / "*.validation")]}}}}


def sequence_too_long(workshop: Workshop, folder: Path) -> Sections:
    return {"data": {"sequence_length": 65}}


def vocabulary_too_small(workshop: Workshop, folder: Path) -> Sections:
    write_model(folder / "hf", vocab_size=VOCABULARY - 20)
    write_tokenizer_of(workshop, folder / "hf")
    return {"model": {"hf": str(folder / "hf")}}


def odd_batch(workshop: Workshop, folder: Path) -> Sections:
    return {"training": {"micro_batch_size": 3}}


def heads_not_shared_evenly(workshop: Workshop, folder: Path) -> Sections:
    return {"parallel": {"tensor": 3}, "training": {"micro_batch_size": 1}}


def layers_not_shared_evenly(workshop: Workshop, folder: Path) -> Sections:
    return {"parallel": {"pipeline": 3}, "training": {"micro_batch_size": 1}}


def unknown_key(workshop: Workshop, folder: Path) -> Sections:
    return {"training": {"micro_batchsize": 2}}


def several_at_once(workshop: Workshop, folder: Path) -> Sections:
    return {"parallel": {"virtual_pipeline": 2}, "checkpoint": {"keep_every": "3 steps"}}


CASES: list[tuple[Callable[[Workshop, Path], Sections], int, list[str]]] = [
    (no_such_dataset, 1, ["nothing.idx", "prepare"]),
    (not_a_tokenizer_folder, 1, ["tokenizer.json"]),
    (tokenizer_of_another_dataset, 1, ["tokenizer", "Prepare"]),
    (empty_validation_set, 1, ["validation", "matches no dataset"]),
    (sequence_too_long, 1, ["data.sequence_length = 65", "64"]),
    (vocabulary_too_small, 1, [f"{VOCABULARY - 20}", f"{VOCABULARY - 1}"]),
    (odd_batch, 1, ["training.global_batch_size = 8", "multiple of", "3"]),
    (heads_not_shared_evenly, 3, ["parallel.tensor = 3", "4"]),
    (layers_not_shared_evenly, 3, ["parallel.pipeline = 3", "4"]),
    (unknown_key, 1, ["training.micro_batchsize", "micro_batch_size"]),
    (several_at_once, 1, ["parallel.virtual_pipeline", "checkpoint.keep_every"]),
]


@pytest.mark.parametrize(("make", "processes", "said"), CASES, ids=[case[0].__name__ for case in CASES])
def test_bad_input_is_said_once_with_exit_code_2(
    workshop: Workshop,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    make: Callable[[Workshop, Path], Sections],
    processes: int,
    said: list[str],
) -> None:
    path = workshop.write_config(tmp_path / "run", **make(workshop, tmp_path))
    assert main(["train", str(path), "--nproc", str(processes)]) == ExitCode.BAD_INPUT
    error = capsys.readouterr().err
    for words in said:
        assert error.count(words) >= 1, error
    assert "Traceback" not in error
    status = read_status(tmp_path / "run/status.json")
    if make is not unknown_key:  # before the config is read, there is no run folder to write to
        assert status is not None
        assert (status.state, status.exit_code) == ("failed", 2)
    assert not (tmp_path / "run/records.jsonl").exists()


def test_a_missing_config_is_bad_input(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", str(tmp_path / "none.yaml")]) == ExitCode.BAD_INPUT
    assert "none.yaml" in capsys.readouterr().err


@pytest.mark.ci
def test_bare_torchrun_says_it_once_and_fails(workshop: Workshop, tmp_path: Path) -> None:
    path = workshop.write_config(tmp_path / "run", data={"sequence_length": 65})
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    done = subprocess.run(
        [*launch, "-m", "megatron_cpt.train", str(path)], capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 1
    assert done.stderr.count("data.sequence_length = 65") == 1
    status = read_status(tmp_path / "run/status.json")
    assert status is not None
    assert status.exit_code == ExitCode.BAD_INPUT


@pytest.mark.ci
def test_what_only_the_weights_tell_comes_back_as_exit_code_2(workshop: Workshop, tmp_path: Path) -> None:
    shutil.copytree(workshop.hf, tmp_path / "hf")
    config = orjson.loads((tmp_path / "hf/config.json").read_bytes())
    (tmp_path / "hf/config.json").write_bytes(orjson.dumps(config | {"intermediate_size": 60}))
    path = workshop.write_config(tmp_path / "run", model={"hf": str(tmp_path / "hf")})
    command = [sys.executable, "-m", "megatron_cpt.commands.dispatch", "train", str(path), "--nproc", "2"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120, env=one_thread())
    assert done.returncode == ExitCode.BAD_INPUT
    assert done.stderr.count("megatron-cpt train:") == 1
    assert "mlp.gate_proj" in done.stderr


def test_a_damaged_checkpoint_comes_back_as_exit_code_3(one_rank: Ranks, workshop: Workshop, tmp_path: Path) -> None:
    path = workshop.write_config(tmp_path / "run")
    one_rank.call(train, path=path, overrides=("training.tokens=4 steps",))
    [shard] = (tmp_path / "run/checkpoints/step-00000004/shards").glob("__0_0.distcp")
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 1
    shard.write_bytes(content)
    write_status(tmp_path / "run/status.json", Status("preempted", int(ExitCode.PREEMPTED), None, 4, 1024))
    command = [sys.executable, "-m", "megatron_cpt.commands.dispatch", "train", str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120, env=one_thread())
    assert done.returncode == ExitCode.INTEGRITY
    assert "__0_0.distcp" in done.stderr
    assert "Traceback" not in done.stderr
    status = read_status(tmp_path / "run/status.json")
    assert status is not None
    # A start that fails has undone no step.
    assert (status.state, status.exit_code, status.step, status.tokens) == ("failed", ExitCode.INTEGRITY, 4, 1024)


def test_a_finished_run_is_not_done_again(one_rank: Ranks, workshop: Workshop, tmp_path: Path, capsys: Any) -> None:
    path = workshop.write_config(tmp_path / "run")
    one_rank.call(train, path=path)
    assert main(["train", str(path)]) == ExitCode.DONE
    assert "already done" in capsys.readouterr().out
    before = read_status(tmp_path / "run/status.json")
    assert main(["train", str(path), "run.seed=77"]) == ExitCode.BAD_INPUT  # which would be another run
    assert before is not None and before.state == "done"
    assert read_status(tmp_path / "run/status.json") == before


@pytest.mark.ci
def test_what_was_evaluated_can_be_reported_while_the_run_goes_on(workshop: Workshop, tmp_path: Path) -> None:
    run = tmp_path / "run"
    records = run / "records.jsonl"
    path = workshop.write_config(run, training={"tokens": "4000 steps"})
    command = [
        sys.executable,
        "-m",
        "megatron_cpt.commands.dispatch",
        "train",
        str(path),
        "run.log_interval=4000 steps",
    ]
    with subprocess.Popen([*command, "checkpoint.save_interval=null"], env=one_thread()) as process:
        try:
            while not (records.exists() and "validation" in records.read_text()):
                assert process.poll() is None
                time.sleep(0.1)
            assert main(["report", str(run)]) == ExitCode.DONE
            assert process.poll() is None
        finally:
            process.terminate()
        assert process.wait() == ExitCode.PREEMPTED


def one_thread() -> dict[str, str]:
    return os.environ | {"OMP_NUM_THREADS": "1"}


@pytest.mark.ci
def test_a_run_without_a_terminal_tells_of_itself_on_standard_output(workshop: Workshop, tmp_path: Path) -> None:
    run = tmp_path / "run"
    path = workshop.write_config(run, training={"tokens": "4 steps"})
    command = [sys.executable, "-m", "megatron_cpt.commands.dispatch", "train", str(path), "run.log_interval=2 steps"]
    told = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert told == (run / "log.txt").read_text()
    number = r"[-+0-9.e,]+"
    for line in (
        rf"step 2/4 \| 512 of 1.02K tokens \| loss {number} \| lr {number} \| grad norm {number} \| {number} t.* left",
        r"step 0: general [0-9.]+ nats/token \(",
        rf"step 4: general [0-9.]+ nats/token, {number} since the start",
        rf"step 4: checkpoint saved: {run}/checkpoints/step-00000004",
        r"warning: no dense early evaluations",
        rf"done after step 4: checkpoint {run}/checkpoints/step-00000004; records {run}/records.jsonl",
    ):
        assert re.search(line, told), line
    # A reader that has gone, such as `| head`, ends neither the run nor its log.
    with subprocess.Popen([*command, "training.tokens=8 steps"], stdout=subprocess.PIPE) as reader:
        assert reader.stdout is not None
        reader.stdout.close()
        assert reader.wait() == 0
    assert "done after step 8" in (run / "log.txt").read_text()
