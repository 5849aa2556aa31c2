"""From a YAML file and `section.key=value` words to a RunConfig, and back to YAML.

1. The file is read with PyYAML's safe loader; a key given twice is refused.
2. Each word sets one value of it; the value is YAML too, so lists, null and sections work.
3. Every value is checked by the types of schema.py; all faults are reported at once.

What only several values together can get wrong is the matter of faults.py.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from pydantic import TypeAdapter, ValidationError

from megatron_cpt.config.errors import BadInput, Fault, refuse
from megatron_cpt.config.schema import RunConfig
from megatron_cpt.config.units import Duration
from megatron_cpt.config.wrong_values import faults_of


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> RunConfig:
    """The configuration of a run. Words of the command line win over the file.

    Args:
        path: a YAML file.
        overrides: words such as `schedule.peak=1e-4` or `data.sources.general.weight=2`.
    Raises:
        BadInput: with every fault of the file and the words.
    """
    settings = read_yaml(Path(path))
    faults = [fault for word in overrides for fault in _override(settings, word)]
    return _validate(settings, faults)


def config_from_dict(settings: Mapping[str, Any]) -> RunConfig:
    """The configuration that a mapping of sections describes. Raises BadInput with every fault."""
    return _validate(settings, [])


def dump_config(config: RunConfig) -> str:
    """YAML from which `load_config` reads an equal configuration, every default spelled out."""
    return yaml.safe_dump(plain(config), sort_keys=False, allow_unicode=True, width=110)


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping of sections in a YAML file.

    Raises:
        BadInput: no such file, not text, not YAML, not a mapping, or a key given twice.
    """
    try:
        settings = _parse(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or error
        fault = Fault(str(path), f"the configuration cannot be read: {reason}.", "Give the path of a YAML file.")
        raise BadInput(fault) from error
    except yaml.YAMLError as error:
        raise BadInput(Fault(str(path), f"{_where(error)}.", "Mend that line.")) from error
    if not isinstance(settings, dict):
        found = "empty" if settings is None else f"a {type(settings).__name__}"
        rule = f"a configuration is a YAML mapping of sections; this one is {found}."
        raise BadInput(Fault(str(path), rule, "Begin with sections such as `run:`, `model:` and `data:`."))
    return settings


class _UniqueKeyLoader(yaml.SafeLoader):
    """PyYAML's safe loader, which alone would keep the last of two equal keys in silence, and take half a character."""

    def construct_scalar(self, node: yaml.ScalarNode | yaml.MappingNode) -> str:
        value: str = super().construct_scalar(node)
        try:
            value.encode()
        except UnicodeEncodeError as error:
            problem = f"the text holds half a character ({value[error.start]!a}), which no file can hold"
            raise yaml.MarkedYAMLError(problem=problem, problem_mark=node.start_mark) from None
        return value

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key in (key for key, _ in node.value if isinstance(key, yaml.ScalarNode)):
            if key.value in seen:
                problem = f"the key `{key.value}` is given twice"
                raise yaml.MarkedYAMLError(problem=problem, problem_mark=key.start_mark)
            seen.add(key.value)
        return super().construct_mapping(node, deep)


def _parse(text: str) -> Any:
    """The value of a YAML text. Raises yaml.YAMLError."""
    loader = _UniqueKeyLoader(text)
    try:
        return loader.get_single_data()
    except ValueError as error:
        # PyYAML takes `2024-13-01` for a date before it finds that it is none.
        raise yaml.YAMLError(str(error)) from error
    finally:
        loader.dispose()


def _where(error: yaml.YAMLError) -> str:
    """A YAML error in one line, with its place where it has one."""
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark is not None:
        mark = error.problem_mark
        return f"line {mark.line + 1}, column {mark.column + 1}: {error.problem}"
    return " ".join(str(error).split())


def _override(settings: dict[str, Any], word: str) -> list[Fault]:
    """Sets one `section.key=value` in `settings`; returns what is wrong with the word.

    Sections on the way are made where they are missing, and copied where they are there: YAML aliases
    (`*name`) make one section stand in two places.
    """
    name, equals, text = word.partition("=")
    keys = name.strip().split(".")
    if not equals or not all(keys):
        rule = "a setting on the command line is `section.key=value`."
        return [Fault(word, rule, "Write it as, for example, `schedule.peak=1e-4`.")]
    try:
        value = _parse(text)
    except yaml.YAMLError as error:
        return [
            Fault(
                word,
                f"the value cannot be read: {_where(error)}.",
                "Put quotes around a text with special characters.",
            )
        ]
    section = settings
    for depth, key in enumerate(keys[:-1], start=1):
        inner = {} if section.get(key) is None else section[key]
        if not isinstance(inner, dict):
            whole = ".".join(keys[:depth])
            return [Fault(word, f"`{whole}` is a value, not a section.", f"Set it as a whole: `{whole}=...`.")]
        section[key] = dict(inner)
        section = section[key]
    section[keys[-1]] = value
    return []


def _validate(settings: Mapping[str, Any], faults: list[Fault]) -> RunConfig:
    try:
        config = _adapter().validate_python(settings)
    except ValidationError as error:
        raise BadInput(*faults, *faults_of(error)) from error
    refuse(faults)
    return config


@cache
def _adapter() -> TypeAdapter[RunConfig]:
    """Made at first use: building it takes longer than reading a configuration."""
    return TypeAdapter(RunConfig)


def plain(value: Any) -> Any:
    """Sections as mappings and durations as users type them."""
    match value:
        case Duration(unit="tokens"):
            return value.amount
        case Duration():
            return str(value)
        case dict():
            return {name: plain(item) for name, item in value.items()}
        case list() | tuple():
            return [plain(item) for item in value]
        case _ if dataclasses.is_dataclass(value):
            return {field.name: plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
        case _:
            return value
