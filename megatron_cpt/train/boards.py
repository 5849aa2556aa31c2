"""Scalars for people to watch: TensorBoard, and Weights & Biases where it is asked for."""

from dataclasses import asdict
from hashlib import sha256
from typing import Any

from torch.utils.tensorboard import SummaryWriter

from megatron_cpt.config.errors import BadInput, Fault
from megatron_cpt.config.schema import RunConfig
from megatron_cpt.runs.folder import RunFolder


class Boards:
    """Takes each scalar once and shows it wherever it is to be seen."""

    def __init__(self, config: RunConfig, folder: RunFolder, last_step: int) -> None:
        """Opens them; what a killed run wrote after a step is taken back where the board can.

        Raises:
            BadInput: Weights & Biases is asked for and not installed.
        """
        self._folder = folder
        self._tensorboard = SummaryWriter(str(folder.tensorboard), purge_step=last_step + 1)
        self._wandb = open_wandb(config, folder) if config.run.wandb is not None else None

    def add_scalar(self, name: str, value: float, step: int) -> None:
        """Shows a number of a step."""
        self._tensorboard.add_scalar(name, value, step)
        if self._wandb is not None:
            # A step of its own: theirs may not go back, and a resume does.
            self._wandb.log({name: value, "step": step})

    def go_back(self, step: int) -> None:
        """Takes back what was shown of later steps. Weights & Biases keeps it."""
        self._tensorboard.close()
        self._tensorboard = SummaryWriter(str(self._folder.tensorboard), purge_step=step + 1)

    def flush(self) -> None:
        """Hands over what is held back."""
        self._tensorboard.flush()

    def close(self) -> None:
        """Closes them."""
        self._tensorboard.close()
        if self._wandb is not None:
            self._wandb.finish()


def open_wandb(config: RunConfig, folder: RunFolder) -> Any:
    """The run on Weights & Biases that belongs to a run folder: the same one at every resume."""
    assert config.run.wandb is not None
    try:
        import wandb  # noqa: PLC0415  (optional)
    except ImportError:
        fault = Fault("run.wandb", "the package wandb is not installed.", "Run `pip install wandb`, or take it out.")
        raise BadInput(fault) from None
    run = wandb.init(
        project=config.run.wandb.project,
        name=folder.path.name,
        id=sha256(str(folder.path.resolve()).encode()).hexdigest()[:16],
        dir=str(folder.path),
        mode=config.run.wandb.mode,
        resume="allow",
        config=asdict(config),
    )
    run.define_metric("step")
    run.define_metric("*", step_metric="step")
    return run
