"""`megatron-cpt train RUN.yaml [section.key=value ...] --nproc N`: the training program on this machine."""

import argparse
import subprocess
import sys

from megatron_cpt.config.errors import BadInput
from megatron_cpt.config.load import load_config
from megatron_cpt.planning.plan import make_plan
from megatron_cpt.runs.folder import RunFolder
from megatron_cpt.runs.status import ExitCode, Status, read_status, write_status


def main(arguments: list[str]) -> int:
    """Starts the program, under torchrun where N is more than 1, and returns the run's own exit code.

    Bad input is found here, before any process starts.
    """
    parser = argparse.ArgumentParser(prog="megatron-cpt train", description=__doc__)
    parser.add_argument("config", metavar="RUN.yaml")
    parser.add_argument("overrides", nargs="*", metavar="section.key=value", help="replaces a value of RUN.yaml")
    parser.add_argument("--nproc", type=int, default=1, metavar="N", help="processes on this machine (default 1)")
    words = parser.parse_intermixed_args(arguments)
    config = load_config(words.config, words.overrides)
    folder = RunFolder(config.run.folder)
    folder.create()
    try:
        make_plan(config, words.nproc)
    except BadInput as error:
        write_status(folder.status, Status("failed", int(ExitCode.BAD_INPUT), str(error)))
        raise
    folder.status.unlink(missing_ok=True)
    code = subprocess.call([*launcher(words.nproc), "-m", "megatron_cpt.train", words.config, *words.overrides])
    status = read_status(folder.status)
    return status.exit_code if status is not None and status.exit_code is not None else code


def launcher(processes: int) -> list[str]:
    """The command that runs a module on some processes of this machine."""
    if processes == 1:
        return [sys.executable]
    return [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
