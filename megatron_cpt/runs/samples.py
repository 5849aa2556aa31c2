"""RUN/samples.json: what models wrote after the same prompts, for the report."""

from dataclasses import asdict, dataclass
from pathlib import Path

from megatron_cpt.config.errors import IntegrityFault
from megatron_cpt.runs.folder import read_json_object, write_checked_json


@dataclass(frozen=True)
class SampledModel:
    """One model and its texts."""

    folder: str
    """Its Hugging Face folder."""
    step: int
    """After which step of the run; 0: before the first update."""
    tokens: int
    """Tokens trained until then."""
    texts: tuple[str, ...]
    """What it wrote after each prompt."""


@dataclass(frozen=True)
class Samples:
    """Greedy text of the models of a run."""

    length: int
    """Tokens that each text has at most: it ends earlier where the model ended it."""
    prompts: tuple[str, ...]
    models: tuple[SampledModel, ...]
    """In the order of their steps."""


def write_samples(path: Path, samples: Samples) -> None:
    """Writes them, in place of earlier ones."""
    write_checked_json(path, asdict(samples))


def read_samples(path: Path) -> Samples | None:
    """Reads them; None where there are none. Raises IntegrityFault for a file that holds anything else."""
    content = read_json_object(path)
    if content is None:
        return None
    try:
        prompts = _texts(content["prompts"])
        models = tuple(
            SampledModel(str(each["folder"]), int(each["step"]), int(each["tokens"]), _texts(each["texts"]))
            for each in content["models"]
        )
        samples = Samples(int(content["length"]), prompts, models)
    except (KeyError, TypeError, ValueError) as error:
        raise IntegrityFault(f"{path}: is no file of samples ({type(error).__name__}: {error}).") from error
    if any(len(model.texts) != len(prompts) for model in models):
        raise IntegrityFault(f"{path}: some model has not one text for each prompt.")
    return samples


def _texts(values: object) -> tuple[str, ...]:
    if not isinstance(values, list | tuple) or not all(isinstance(value, str) for value in values):
        raise TypeError("texts are expected")
    return tuple(values)
