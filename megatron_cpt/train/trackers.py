"""Where the scalars of a run are shown: TensorBoard, Weights & Biases, MLflow. Rank 0 calls it.

TensorBoard is a folder of the run. The others are asked for by `run.wandb_project` and `run.mlflow_experiment`; each
gets the same names and numbers, and a run that is resumed goes on in the same curves.
"""

import re
import time
from collections.abc import Callable
from dataclasses import asdict
from hashlib import sha256
from pathlib import Path
from queue import SimpleQueue
from threading import Thread
from typing import Any

from torch.utils.tensorboard import SummaryWriter

from megatron_cpt.config.errors import BadInput, Fault
from megatron_cpt.config.load import plain
from megatron_cpt.config.schema import RunConfig
from megatron_cpt.runs.folder import RunFolder, named_errors


class Trackers:
    """Takes each scalar once and shows it wherever it is to be seen."""

    def __init__(
        self, config: RunConfig, folder: RunFolder, last_step: int, resumed: bool, warn: Callable[[str], None]
    ) -> None:
        """Opens them; what a killed run wrote after a step is taken back where the tracker can.

        Args:
            resumed: whether the run goes on from a checkpoint of its own.
            warn: told, from a thread of its own, of what ends no run.
        Raises:
            BadInput: a tracker is asked for and not installed.
        """
        self._folder = folder
        self._tensorboard = SummaryWriter(str(folder.tensorboard), purge_step=last_step + 1)
        self._wandb = _open_wandb(config, folder) if config.run.wandb_project is not None else None
        self._mlflow = _MLflow(config, folder, resumed, warn) if config.run.mlflow_experiment is not None else None

    def add_scalar(self, name: str, value: float, step: int) -> None:
        """Shows a number of a step."""
        with named_errors(self._folder.tensorboard):
            self._tensorboard.add_scalar(name, value, step)
        if self._wandb is not None:
            # A step of its own: theirs may not go back, and a resume does.
            self._wandb.log({name: value, "step": step})
        if self._mlflow is not None:
            self._mlflow.add_scalar(name, value, step)

    def go_back(self, step: int) -> None:
        """Takes back what was shown of later steps. Weights & Biases and MLflow keep it."""
        with named_errors(self._folder.tensorboard):
            self._tensorboard.close()
            self._tensorboard = SummaryWriter(str(self._folder.tensorboard), purge_step=step + 1)

    def flush(self) -> None:
        """Hands over what is held back."""
        with named_errors(self._folder.tensorboard):
            self._tensorboard.flush()
        if self._mlflow is not None:
            self._mlflow.flush()

    def close(self, done: bool) -> None:
        """Closes them.

        Args:
            done: whether the run is at its end; else it is to be resumed.
        """
        with named_errors(self._folder.tensorboard):
            self._tensorboard.close()
        if self._wandb is not None:
            self._wandb.finish()
        if self._mlflow is not None:
            self._mlflow.close(done)


def _open_wandb(config: RunConfig, folder: RunFolder) -> Any:
    """The run on Weights & Biases that belongs to a run folder: the same one at every resume."""
    assert config.run.wandb_project is not None
    try:
        import wandb  # noqa: PLC0415  (optional)
    except ImportError:
        raise BadInput(_not_installed("run.wandb_project", "wandb")) from None
    run = wandb.init(
        project=config.run.wandb_project,
        name=folder.path.name,
        id=_id_of(folder.path),
        dir=str(folder.path),
        resume="allow",
        config=asdict(config),
    )
    run.define_metric("step")
    run.define_metric("*", step_metric="step")
    return run


def _not_installed(setting: str, package: str) -> Fault:
    return Fault(setting, f"the package {package} is not installed.", f"Run `pip install {package}`, or take it out.")


def _id_of(folder: Path) -> str:
    """What a tracker knows a run folder by."""
    return sha256(str(folder.resolve()).encode()).hexdigest()[:16]


class _MLflow:
    """The run on an MLflow server, or in its local store, that belongs to a run folder.

    A thread makes all calls: a server that is slow or gone delays no step and ends no run. What it has not taken is
    sent again with what comes next.
    """

    TAG = "megatron_cpt_run"
    """By which a resume finds the run: MLflow chooses its ids itself."""
    BATCH, PARAMETERS = 1000, 100
    """Metrics and parameters that MLflow takes in one call."""
    KEPT = 200_000
    """Metrics that are kept for a server that does not answer."""
    PATIENCE = 60.0
    """Seconds that the end of a run waits until all is sent."""

    def __init__(self, config: RunConfig, folder: RunFolder, resumed: bool, warn: Callable[[str], None]) -> None:
        try:
            # Here, not in the thread: a process that is forked during an import could import nothing.
            from mlflow import MlflowClient, entities  # noqa: PLC0415  (optional)
        except ImportError:
            raise BadInput(_not_installed("run.mlflow_experiment", "mlflow")) from None
        self._client, self._entities = MlflowClient, entities
        self._config, self._folder, self._resumed, self._warn = config, folder.path, resumed, warn
        self._metrics: list[Any] = []
        self._unsent: list[Any] = []
        self._queue: SimpleQueue[list[Any] | str] = SimpleQueue()
        """Metrics to send, and at the end the state of the run."""
        self._thread = Thread(target=self._send, name="mlflow", daemon=True)
        self._thread.start()

    def add_scalar(self, name: str, value: float, step: int) -> None:
        """Takes a number of a step."""
        # Names of sources and sets are free; MLflow's are not.
        known = re.sub(r"[^\w\-. :/]", "_", name)
        self._metrics.append(self._entities.Metric(known, float(value), time.time_ns() // 1_000_000, step))

    def flush(self) -> None:
        """Has what was taken sent; does not wait."""
        if self._metrics:
            self._queue.put(self._metrics)
            self._metrics = []

    def close(self, done: bool) -> None:
        """Sends what is left and the state of the run, and waits for PATIENCE at most."""
        self.flush()
        self._queue.put("FINISHED" if done else "KILLED")
        self._thread.join(self.PATIENCE)
        if self._thread.is_alive() or self._unsent:
            self._warn("MLflow has not taken all scalars: records.jsonl and RUN/tensorboard have them")

    def _send(self) -> None:
        """What the thread does until the run is closed."""
        client, run = None, None
        answers = True
        while True:
            taken = self._queue.get()
            if isinstance(taken, list):
                self._unsent += taken
            try:
                if client is None or run is None:
                    client = self._client()
                    run = self._open(client)
                while self._unsent:
                    client.log_batch(run, metrics=self._unsent[: self.BATCH])
                    del self._unsent[: self.BATCH]
                if isinstance(taken, str):
                    client.set_terminated(run, taken)
                answers = True
            except Exception as error:  # whatever it is, it is no fault of the run
                if answers:
                    said = " ".join(str(error).split()) or type(error).__name__
                    self._warn(f"MLflow does not take the scalars ({said[:300]}); training goes on")
                answers = False
                del self._unsent[: -self.KEPT]
            if isinstance(taken, str):
                return

    def _open(self, client: Any) -> str:
        """The id of the MLflow run: at a resume the one before, else a new one with the configuration."""
        name, own = self._config.run.mlflow_experiment, _id_of(self._folder)
        found = client.get_experiment_by_name(name)
        experiment = client.create_experiment(name) if found is None else found.experiment_id
        if self._resumed:
            newest = ["attributes.start_time DESC"]
            before = client.search_runs([experiment], f"tags.{self.TAG} = '{own}'", max_results=1, order_by=newest)
            if before:
                client.update_run(before[0].info.run_id, status="RUNNING")
                return str(before[0].info.run_id)
        run = str(client.create_run(experiment, run_name=self._folder.name, tags={self.TAG: own}).info.run_id)
        settings = [
            self._entities.Param(re.sub(r"[^\w\-. :/]", "_", key), value) for key, value in _flat(plain(self._config))
        ]
        for start in range(0, len(settings), self.PARAMETERS):
            client.log_batch(run, params=settings[start : start + self.PARAMETERS])
        return run


def _flat(settings: dict[str, Any], before: str = "") -> list[tuple[str, str]]:
    """Nested settings as `section.key` and text, of the length that MLflow takes."""
    found: list[tuple[str, str]] = []
    for name, value in settings.items():
        if isinstance(value, dict) and value:
            found += _flat(value, f"{before}{name}.")
        else:
            found.append((f"{before}{name}", str(value)[:6000]))
    return found
