"""The run folder: what remains of a run, by name."""

from pathlib import Path

from megatron_cpt.config.errors import BadInput, Fault


class RunFolder:
    """Names and places of the files of a run."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)

    @property
    def config(self) -> Path:
        """The resolved configuration of the last start, from which alone the run can be repeated."""
        return self.path / "config.yaml"

    def config_from(self, step: int) -> Path:
        """The configuration with which the run went on after a step."""
        return self.path / f"config.step-{step:08}.yaml"

    def configs(self) -> dict[int, Path]:
        """Those of all starts that changed something, by the steps done before, in their order."""
        paths = sorted(self.path.glob("config.step-*.yaml"))
        numbers = [(path.name.removeprefix("config.step-").removesuffix(".yaml"), path) for path in paths]
        return {int(number): path for number, path in numbers if number.isdigit()}

    @property
    def plan(self) -> Path:
        """What the run set out to do: blend, steps, marks."""
        return self.path / "plan.json"

    @property
    def versions(self) -> Path:
        """Software and machine."""
        return self.path / "versions.json"

    @property
    def lineage(self) -> Path:
        """The parent of the model and the learning-rate history, for the loss laws."""
        return self.path / "lineage.json"

    @property
    def start_check(self) -> Path:
        """The loss of the first sequences before the first update, beside transformers' own."""
        return self.path / "start_check.json"

    @property
    def records(self) -> Path:
        """One JSON object a line (records.py)."""
        return self.path / "records.jsonl"

    @property
    def status(self) -> Path:
        """How the run stands or ended (status.py)."""
        return self.path / "status.json"

    @property
    def log(self) -> Path:
        """What a person reads (log.py)."""
        return self.path / "log.txt"

    @property
    def tensorboard(self) -> Path:
        """Folder of TensorBoard event files."""
        return self.path / "tensorboard"

    @property
    def profile(self) -> Path:
        """Folder of profiler traces."""
        return self.path / "profile"

    @property
    def checkpoints(self) -> Path:
        """Folder of checkpoints to resume from."""
        return self.path / "checkpoints"

    @property
    def model(self) -> Path:
        """config.json and tokenizer of a model whose positions differ from those of the folder it starts from."""
        return self.path / "model"

    @property
    def hf(self) -> Path:
        """The exported Hugging Face folder."""
        return self.path / "hf"

    def hf_of_step(self, step: int) -> Path:
        """The Hugging Face folder that was exported after a step on the way."""
        return self.path / "hf_steps" / f"step-{step:08}"

    @property
    def report(self) -> Path:
        """The page that `megatron-cpt report` writes."""
        return self.path / "report.html"

    def create(self) -> None:
        """Makes the folder and its folder of checkpoints where they are not there yet.

        Raises:
            BadInput: a file is in the way, or the place cannot be written to.
        """
        try:
            self.checkpoints.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            reason = f"the run folder cannot be made here: {error.strerror or error}."
            raise BadInput(Fault(str(self.path), reason, "Give another `run.folder`.")) from error
