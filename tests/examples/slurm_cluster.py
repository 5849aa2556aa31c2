"""A Slurm cluster of two nodes on this machine, for as long as a test lasts: Debian's slurm-wlm and munge, as root.

Each node is a slurmd with a name and a port of its own. Everything it writes lies in one folder.
"""

import os
import secrets
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import psutil

PROGRAMS = ("slurmctld", "slurmd", "munged", "srun", "sbatch", "scontrol", "squeue")
NODES = ("n1", "n2")
TASKS = 8
"""CPUs that a node is said to have."""

_CONF = """\
ClusterName=test
SlurmctldHost={host}
SlurmctldPort={ports[0]}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
CredType=cred/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
MpiDefault=none
ReturnToService=2
SlurmdParameters=config_overrides
NodeName={nodes[0]} NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[1]} CPUs={tasks}
NodeName={nodes[1]} NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[2]} CPUs={tasks}
PartitionName=all Nodes={nodes[0]},{nodes[1]} Default=YES MaxTime=INFINITE State=UP
"""
# With a file of hosts of its own, in which the names of the nodes are this machine.
_NODE = "mount --bind {folder}/hosts /etc/hosts && exec slurmd -D -N {node}"


def missing() -> str | None:
    """Why there can be no cluster here."""
    absent = [name for name in PROGRAMS if shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin") is None]
    if absent:
        return f"{', '.join(absent)} not installed: apt-get install slurm-wlm munge"
    return None if os.geteuid() == 0 else "slurmd needs root"


@contextmanager
def two_nodes(folder: Path) -> Iterator[dict[str, str]]:
    """The cluster for the block; the environment in which Slurm's programs find it."""
    folder.chmod(0o755)
    (folder / "state").mkdir()
    key = folder / "munge.key"
    key.write_bytes(secrets.token_bytes(128))
    key.chmod(0o400)
    with ExitStack() as stack:
        free = [stack.enter_context(socket.socket()) for _ in range(3)]
        for one in free:
            one.bind(("127.0.0.1", 0))
        ports = [one.getsockname()[1] for one in free]
    (folder / "hosts").write_text(f"{Path('/etc/hosts').read_text()}\n127.0.0.1 {' '.join(NODES)}\n")
    conf = folder / "slurm.conf"
    conf.write_text(_CONF.format(host=socket.gethostname(), ports=ports, nodes=NODES, folder=folder, tasks=TASKS))
    environment = os.environ | {"SLURM_CONF": str(conf), "PATH": f"{os.environ['PATH']}:/usr/sbin"}
    files = [f"--{name}={folder}/munge.{name.split('-')[0]}" for name in ("socket", "key-file", "pid-file", "log-file")]
    daemons = [
        ["munged", "--foreground", "--force", f"--seed-file={folder}/munge.seed", *files],
        ["slurmctld", "-D", "-i"],
        *(["unshare", "--mount", "sh", "-c", _NODE.format(folder=folder, node=node)] for node in NODES),
    ]
    with ExitStack() as stack:
        log = stack.enter_context((folder / "daemons.log").open("wb"))
        for command in daemons:
            process = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
            stack.callback(process.wait, 60)
            stack.callback(process.terminate)
            time.sleep(1)
        stack.callback(_end_jobs, conf)
        _wait_until_idle(environment, folder)
        yield environment


def _end_jobs(conf: Path) -> None:
    """Ends what jobs have left, before the daemons: they would go on without them."""
    for process in psutil.process_iter(["environ", "name"]):
        of_jobs = process.info["name"] not in ("slurmctld", "slurmd", "munged")
        if of_jobs and (process.info["environ"] or {}).get("SLURM_CONF") == str(conf):
            with suppress(psutil.NoSuchProcess):
                process.kill()


def _wait_until_idle(environment: dict[str, str], folder: Path) -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        command = ["sinfo", "--noheader", "--Node", "--format=%T"]
        states = subprocess.run(command, env=environment, capture_output=True, text=True, check=False).stdout.split()
        if states == ["idle"] * len(NODES):
            return
        time.sleep(0.5)
    raise AssertionError((folder / "daemons.log").read_text(errors="replace")[-3000:])
