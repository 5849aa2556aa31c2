"""When a program on transformers' Trainer evaluates and saves, as keys of a run.yaml."""

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from math import ceil
from pathlib import Path
from typing import Any

from megatron_cpt.planning.config_keys import ConfigTranslation
from megatron_cpt.planning.outcomes import validation_role
from megatron_cpt.planning.run_file import distinct_names, source_name

_EVALUATIONS = ("eval_strategy", "evaluation_strategy", "eval_steps", "evals_per_epoch")
_PERCENTAGE = "validation_split_percentage"
_SPLITS = ("val_size", "val_set_size", _PERCENTAGE)


@dataclass(frozen=True)
class Length:
    """How long a run is."""

    steps: int
    epochs: float | None = None
    """Passes over the datasets; None: the length is given in steps."""

    def share(self, amount: float | None) -> int:
        """Steps of an interval: a number of them, or a share of the run where it is below 1."""
        amount = amount or 1
        return max(1, int(amount) if amount >= 1 else ceil(amount * self.steps))


def translate_evaluations(
    translation: ConfigTranslation, sources: Mapping[str, str], replay: Collection[str], length: Length
) -> None:
    """Validation sets, and the steps at which they are evaluated.

    Args:
        sources: paths of the training datasets by the names of their sources.
        replay: sources whose role is replay.
    """
    key, sets = _validation_sets(translation, sources)
    for name, path in sets.items():
        translation.write(f"validation.sets.{name}.paths", [path], "")
        role = validation_role(name, path, sources, replay) or "domain"
        translation.write(f"validation.sets.{name}.role", role, "")
    if key is not None:
        _tell_of_sets(translation, key, ", ".join(sets))
    strategy = _strategy(translation)
    if sets:
        for regular, steps in _regular(translation, length, ("eval_steps", "evals_per_epoch"), strategy):
            remark = "also before the first update"
            translation.take(regular, "validation.eval_interval.every", f"{steps} steps", remark)
    elif strategy[1] != "no" or translation.has("evals_per_epoch"):
        for given in filter(translation.has, _EVALUATIONS):
            translation.refuse(given, "The configuration names no validation set. Add one to validation.sets")
    words = "sets are evaluated before the first update and after the last, and so often between"
    translation.equal(*_EVALUATIONS, words=words)
    if sets and translation.has("per_device_eval_batch_size"):
        size = translation.whole("per_device_eval_batch_size")
        translation.take("per_device_eval_batch_size", "validation.micro_batch_size", size)


def _validation_sets(
    translation: ConfigTranslation, sources: Mapping[str, str]
) -> tuple[str | None, Mapping[str, str]]:
    """The key that names the sets, and the path of each by its name."""
    split = next((key for key in _SPLITS if translation.number(key)), None)
    if split is not None:
        return split, {name: f"{path}.validation" for name, path in sources.items()}
    key = next(filter(translation.has, ("eval_dataset", "validation_file", "test_datasets")), None)
    found = list(dataset_labels(translation.value(key))) if key is not None else []
    names = distinct_names(map(source_name, found))
    paths = [label if Path(f"{label}.idx").is_file() else f"data/{source_name(label)}" for label in found]
    return key, dict(zip(names, paths, strict=True))


def _tell_of_sets(translation: ConfigTranslation, key: str, names: str) -> None:
    told = f"validation.sets: {names}"
    size = translation.number(key) if key in _SPLITS else None
    if size is None:
        translation.note(key, "taken", f"{told}; after `megatron-cpt prepare`")
    elif key != _PERCENTAGE and size > 1:
        words = f"{told}; documents are held out by share or tokens: `megatron-cpt prepare --holdout 0.5%`"
        translation.refuse(key, f"It counts {size:g} examples. {words}")
    else:
        share = size if key == _PERCENTAGE else 100 * size
        words = f"{told}; `megatron-cpt prepare --holdout {share:g}%` of documents, by their content"
        translation.note(key, "taken", words)


def _strategy(translation: ConfigTranslation) -> tuple[str, str]:
    """The key that says when sets are evaluated, and its value."""
    key = "eval_strategy" if translation.has("eval_strategy") else "evaluation_strategy"
    return key, str(translation.value("eval_strategy") or translation.value(key) or "no").lower()


def translate_checkpoints(translation: ConfigTranslation, length: Length) -> None:
    """When checkpoints are saved, and how many stay."""
    strategy = "save_strategy", str(translation.value("save_strategy")).lower()
    if translation.program.name == "axolotl":
        strategy = "save_strategy", str(translation.values.get("save_strategy") or "epoch").lower()
    for key, steps in _regular(translation, length, ("save_steps", "saves_per_epoch"), strategy):
        translation.take(key, "checkpoint.save_interval", f"{steps} steps")
    words = "checkpoint.save_interval says it"
    translation.equal("save_strategy", "save_steps", "saves_per_epoch", words=words)
    if limit := translation.whole("save_total_limit"):
        translation.take("save_total_limit", "checkpoint.keep_last", limit)
    translation.write("checkpoint.export_hf.end", True, "a Hugging Face folder RUN/hf at the end, as there")


def _regular(
    translation: ConfigTranslation, length: Length, keys: tuple[str, str], strategy: tuple[str, str]
) -> Iterator[tuple[str, int]]:
    """The key that says how often something is done, and every how many steps; nothing where it is not done.

    Args:
        keys: the one in steps and, of axolotl, the one in times an epoch.
        strategy: the key with `no`, `steps` or `epoch`, and its value.
    """
    in_steps, in_epochs = keys
    key, kind = strategy
    ignores_kind = translation.program.name == "axolotl"
    # axolotl makes a share of the run of them, 1 / (times * num_epochs), where max_steps gives the length too.
    epochs = length.epochs or translation.number("num_train_epochs")
    if translation.has(in_epochs) and epochs and (times := translation.number(in_epochs)):
        yield in_epochs, max(1, ceil(length.steps / (times * epochs)))
    elif translation.has(in_steps) and (kind == "steps" or ignores_kind):
        yield in_steps, length.share(translation.number(in_steps))
    elif kind == "epoch":
        yield key, max(1, int(length.steps / (length.epochs or 1)))
    elif kind == "steps":
        yield key, length.share(translation.number("save_steps" if in_steps == "save_steps" else "logging_steps"))


def dataset_labels(value: Any) -> Iterator[str]:
    """Names of datasets: a text with commas, a list of texts, or one of mappings with `path` (axolotl)."""
    if isinstance(value, str):
        value = value.split(",")
    for one in value if isinstance(value, list) else []:
        label = one.get("path") or one.get("name") if isinstance(one, dict) else one
        if label is not None and str(label).strip():
            yield str(label).strip().removesuffix(".jsonl").removesuffix(".json").removesuffix(".txt")
