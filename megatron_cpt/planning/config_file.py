"""The configuration file of another program: read, recognised by its content, and laid out flat.

YAML and JSON are read as plain values. A pickle such as training_args.bin is refused, and nothing in a file is run.
"""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import orjson
import yaml

from megatron_cpt.config.errors import BadInput, Fault
from megatron_cpt.config.load import parse_yaml, yaml_reason

SUFFIXES = (".yaml", ".yml", ".json")
_PICKLES = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt")
_INNER_FILES = ("run_config.yaml", "config.json")
"""Of a checkpoint of Megatron-Bridge, and of a run folder of OLMo-core."""
_REFERENCE = re.compile(r"\$\{([\w.]+)\}")
_MAPPINGS = (
    "accelerator_config",
    "fsdp_config",
    "deepspeed",
    "activation_checkpointing_kwargs",
    "gradient_checkpointing_kwargs",
    "lr_scheduler_kwargs",
)
"""Arguments of the Trainer that are a mapping, or JSON of one in a text (transformers' training_args.py)."""
TRAINER_FILES = ("accelerator_config", "fsdp_config", "deepspeed")
"""Those that may also be the path of a JSON file."""
_LARGEST = 16 << 20
"""Bytes of a configuration."""
_MOST_REFERENCES = 4
"""In a value that is more than one: references in references multiply."""
_MOST_VALUES = 100_000
"""YAML's references can make any number of values of a small file."""


@dataclass(frozen=True)
class Program:
    """A program whose configuration files can be imported."""

    name: str
    """As `--from` has it."""
    title: str
    version: str
    """Whose keys the tables have."""
    tables: tuple[str, ...]
    """Tables of its keys (config_keys.py); the first that has a key decides."""


PROGRAMS = {
    program.name: program
    for program in (
        Program("llama-factory", "LLaMA-Factory", "ff6d4d12e (2026-08)", ("llama_factory", "hf_trainer")),
        Program("axolotl", "axolotl", "067b021c8 (2026-07)", ("axolotl", "hf_trainer")),
        Program("hf-trainer", "Hugging Face Trainer", "transformers 4.40 to 5.23", ("hf_trainer",)),
        Program("megatron-bridge", "Megatron-Bridge", "067f987df (2026-08)", ("megatron_bridge",)),
        Program("nemo", "NeMo 1 and 2", "NeMo 2.0 and before", ("nemo",)),
        Program("olmo-core", "OLMo-core", "fa6c5014c (2026-06)", ("olmo_core",)),
    )
}


@dataclass(frozen=True)
class ConfigFile:
    """A configuration, laid out flat."""

    program: Program
    values: Mapping[str, Any]
    """Values by dotted keys: `optimizer.lr`. A list is a value, whatever it holds."""


def config_path(source: Path) -> Path | None:
    """The configuration file that a path means; None where it is a script, an argument list or another folder.

    Raises BadInput for a pickle, or a folder that holds one in place of a configuration.
    """
    if source.is_dir():
        inner = [source / name for name in _INNER_FILES if (source / name).is_file()]
        known = next((path for path in inner if recognise(_load(path)) is not None), None)
        if known is None and (source / "training_args.bin").is_file():
            raise BadInput(_pickle_fault(source / "training_args.bin"))
        return known
    if source.suffix.lower() in _PICKLES:
        raise BadInput(_pickle_fault(source))
    return source if source.suffix.lower() in SUFFIXES else None


def _pickle_fault(path: Path) -> Fault:
    rule = "is a pickle, which can run any program; it is not read."
    remedy = (
        "Write its values where they were made, with `training_args.to_json_string()`, or give the YAML or JSON file "
        "that the run was started with."
    )
    return Fault(str(path), rule, remedy)


def read_config_file(path: Path, changes: Sequence[str] = (), program: str | None = None) -> ConfigFile:
    """A configuration with `KEY=VALUE` changes.

    Args:
        changes: dotted keys of the file's own program; they hold over the file.
        program: name of the program. None: it is recognised.
    Raises:
        BadInput: it cannot be read, is no mapping, or belongs to no program that is known.
    """
    tree = _load(path)
    found = program or recognise(tree)
    if found is None:
        rule = "is not recognised as the configuration of a program that is known."
        raise BadInput(Fault(str(path), rule, f"Name the program with --from: {', '.join(PROGRAMS)}."))
    values = dict(islice(_flat(tree, ""), _MOST_VALUES + 1))
    if len(values) > _MOST_VALUES:
        rule = f"holds more than {_MOST_VALUES:,} values."
        raise BadInput(Fault(str(path), rule, "Give the configuration of a run alone."))
    for change in changes:
        key, equals, text = change.partition("=")
        key = key.lstrip("-+")
        if not equals or not key:
            rule = "is no change of the configuration."
            raise BadInput(Fault(change, rule, "Write KEY=VALUE, with a key of the file's program."))
        values = {name: value for name, value in values.items() if name != key and not name.startswith(f"{key}.")}
        values |= dict(_flat(_value(text, change), key))
    if "hf_trainer" in PROGRAMS[found].tables:
        values = dict(_with_mappings(values, path.parent))
    return ConfigFile(PROGRAMS[found], {key: _resolved(value, key, values) for key, value in values.items()})


def _load(path: Path) -> Mapping[str, Any]:
    remedy = "Give a YAML or JSON file with the configuration of a run."
    try:
        if path.stat().st_size > _LARGEST:
            raise BadInput(Fault(str(path), "is too large for a configuration.", remedy))
        text = path.read_text(encoding="utf-8")
        tree = _json(text) if path.suffix.lower() == ".json" else parse_yaml(text)
    except (OSError, UnicodeDecodeError, yaml.YAMLError, RecursionError, ValueError) as error:
        said = yaml_reason(error) if isinstance(error, yaml.YAMLError) else " ".join(str(error).split())
        reason = getattr(error, "strerror", None) or said
        raise BadInput(Fault(str(path), f"cannot be read: {reason}.", remedy)) from error
    if not isinstance(tree, dict):
        raise BadInput(Fault(str(path), "holds no keys with values.", remedy))
    return tree


def _value(text: str, change: str) -> Any:
    try:
        return parse_yaml(text)
    except yaml.YAMLError as error:
        raise BadInput(Fault(change, "is no value of YAML.", "Quote it.")) from error


def _json(text: str) -> Any:
    """The value of a JSON text. Raises ValueError, also for a key given twice."""
    json.loads(text, object_pairs_hook=_unique)
    return orjson.loads(text)


def _unique(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    """The mapping of an object's pairs. Raises ValueError for a key given twice."""
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise ValueError(f"the key `{key}` is given twice")
        found[key] = value
    return found


def _with_mappings(values: Mapping[str, Any], folder: Path) -> Iterator[tuple[str, Any]]:
    """Values, and those in the JSON of a text or of a file that a key names. What has its own key holds over these.

    Args:
        folder: of the configuration; a file is sought in the working folder, then here.
    """
    for key, value in values.items():
        text = value.strip() if key in _MAPPINGS and isinstance(value, str) else ""
        tree = _text_mapping(key, text) if text.startswith("{") else None
        if tree is None:
            yield key, value
            tree = _file_mapping(text, folder) if key in TRAINER_FILES and text else None
        own = [name for name in values if name.startswith(f"{key}.")]
        for name, inner in _flat(tree, key) if tree is not None else ():
            if not any(name == each or name.startswith(f"{each}.") for each in own):
                yield name, inner


def _text_mapping(key: str, text: str) -> dict[str, Any]:
    """The mapping in a JSON text. Raises BadInput where there is none."""
    try:
        tree: dict[str, Any] = _json(text)
    except (ValueError, RecursionError) as error:
        raise BadInput(Fault(f"{key}: {text}", f"is no JSON: {error}.", "Mend it, or write a mapping.")) from error
    return tree


def _file_mapping(name: str, folder: Path) -> dict[str, Any] | None:
    """The mapping in a JSON file; None where it cannot be read."""
    try:
        path = next((path for path in (Path(name), folder / name) if path.is_file()), None)
        if path is None or path.stat().st_size > _LARGEST:
            return None
        tree = _json(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    return tree if isinstance(tree, dict) else None


def recognise(tree: Mapping[str, Any]) -> str | None:
    """The program whose configuration a mapping is, by keys that the others do not have; None where none is sure."""
    keys = {str(key) for key in tree}
    sections = {str(key) for key, value in tree.items() if isinstance(value, dict)}
    target = f"{tree.get('_target_', '')} {tree.get('_CLASS_', '')}"
    if "train_module" in sections or "olmo_core" in target:
        return "olmo-core"
    if "megatron.bridge" in target or (len(sections & _BRIDGE) >= 2 and "trainer" not in keys):
        return "megatron-bridge"
    if "nemo." in target or {"trainer", "model"} <= sections:
        return "nemo"
    if "base_model" in keys and keys & {"sequence_len", "micro_batch_size", "datasets", "pretraining_dataset"}:
        return "axolotl"
    if len(keys & {*_LLAMA_FACTORY, "model_name_or_path"}) >= 2:
        return "llama-factory"
    return "hf-trainer" if len(keys & _TRAINER) >= 2 else None


_BRIDGE = {"train", "model", "optimizer", "scheduler", "dataset", "checkpoint", "ddp", "logger", "mixed_precision"}
_LLAMA_FACTORY = {"stage", "finetuning_type", "cutoff_len", "template", "dataset_dir", "mix_strategy", "neat_packing"}
_TRAINER = {
    "per_device_train_batch_size",
    "gradient_accumulation_steps",
    "learning_rate",
    "num_train_epochs",
    "max_steps",
    "lr_scheduler_type",
    "output_dir",
    "weight_decay",
    "warmup_steps",
    "warmup_ratio",
}


def _flat(value: Any, key: str) -> Iterator[tuple[str, Any]]:
    """Values by dotted keys. An empty mapping is a value, and so is a name that is not called, such as a dtype."""
    if isinstance(value, dict) and value.keys() == {"_target_", "_call_"} and value["_call_"] is False:
        value = value["_target_"]
    if not isinstance(value, dict) or not value:
        yield key, value
        return
    for name, inner in value.items():
        yield from _flat(inner, f"{key}.{name}" if key else str(name))


def _resolved(value: Any, key: str, values: Mapping[str, Any], depth: int = 0) -> Any:
    """A value with OmegaConf's `${other.key}` in place; what it cannot find stays as it is."""
    if not isinstance(value, str) or depth > 8:
        return value

    def named(match: re.Match[str]) -> Any:
        name = match[1]
        if name.startswith("."):
            steps = len(name) - len(name.lstrip("."))
            name = ".".join([*key.split(".")[:-steps], name.lstrip(".")])
        return _resolved(values[name], name, values, depth + 1) if name in values else match[0]

    whole = _REFERENCE.fullmatch(value.strip())
    if whole or len(_REFERENCE.findall(value)) > _MOST_REFERENCES:
        return named(whole) if whole else value
    return _REFERENCE.sub(lambda match: str(named(match)), value)
