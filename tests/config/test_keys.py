"""Keys that messages, rules and pages name are keys of the schema."""

import ast
import dataclasses
import re
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from megatron_cpt.config.schema import RunConfig
from megatron_cpt.planning.resume_changes import LOSS_MEANING, NOT_THE_RESULT, OF_THE_BASE, OF_THE_BEGINNING

ROOT = Path(__file__).parents[2]
KNOW_OLD_NAMES = (ROOT / "megatron_cpt/config/load.py", ROOT / "megatron_cpt/runs/checkpoint_state.py")
KNOW_OTHER_KEYS = (ROOT / "megatron_cpt/planning/import_nemo.py",)
"""Has keys of other programs whose sections are called as ours are."""
SECTIONS = [section.name for section in dataclasses.fields(RunConfig)]
NAMED = re.compile(rf"(?<![\w./-])(?:{'|'.join(SECTIONS)})(?:\.\w+)+")
# Modules, files and fields of other programs whose names begin as a section's do.
OTHERS = re.compile(
    r"megatron\.(core|training|bridge)|model\.(layers|norm|embed_tokens|safetensors)|optimizer\.(state|distributed|params|lr$)"
    r"|model\.tensor_model_parallel_size|checkpoint\.pretrained_checkpoint"
    r"|training\.(steps|sequence_length)$|\.(sh|json|md|py|yaml)$"
)


def is_module(name: str) -> bool:
    """Whether a dotted name begins with a module of this package: some packages are called as sections are."""
    package, module = name.split(".")[:2]
    return (ROOT / "megatron_cpt" / package / f"{module}.py").is_file()


def exists(words: list[str], kind: Any = RunConfig) -> bool:
    """Whether a path of keys is there; `*` stands for any name of a mapping, or number of a list."""
    if not words:
        return True
    kinds = typing.get_type_hints(kind)
    if words[0] not in kinds:
        return False
    annotation, rest = kinds[words[0]], words[1:]
    if typing.get_origin(annotation) in (dict, list):
        rest = rest[1:]
    inner = list(sections_in(annotation))
    return not inner or any(exists(rest, one) for one in inner)


def sections_in(annotation: Any) -> Iterator[Any]:
    """The section classes that an annotation names."""
    if dataclasses.is_dataclass(annotation) and annotation.__name__.endswith("Settings"):
        yield annotation
    for part in typing.get_args(annotation):
        yield from sections_in(part)


def texts_of(path: Path) -> Iterator[str]:
    """The strings of a program, the parts of an f-string with X for its values; or a page."""
    if path.suffix == ".md":
        own, *tables = path.read_text().split("\n## Keys of ")  # of other programs; test_import_config.py has them
        assert not tables or path.name == "migrating.md"
        yield own
        return
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.JoinedStr):
            yield "".join(part.value if isinstance(part, ast.Constant) else "{}" for part in node.values)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value


def keys_in(settings: Any, before: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """The paths of all keys of nested settings."""
    entries = settings.items() if isinstance(settings, dict) else enumerate(settings)
    for key, value in entries:
        yield (*before, str(key))
        if isinstance(value, dict | list):
            yield from keys_in(value, (*before, str(key)))


@pytest.mark.parametrize("folder", ["megatron_cpt", "docs"])
def test_every_key_that_is_named_is_there(folder: str) -> None:
    found = [
        f"{path.relative_to(ROOT)}: {name}"
        for path in sorted((ROOT / folder).rglob("*"))
        if path.suffix in (".py", ".md") and path not in (*KNOW_OLD_NAMES, *KNOW_OTHER_KEYS)
        for text in texts_of(path)
        for name in NAMED.findall(text)
        if not OTHERS.search(name) and not is_module(name) and not exists(name.split("."))
    ]
    assert found == []


@pytest.mark.parametrize("key", [*NOT_THE_RESULT, *OF_THE_BEGINNING, *OF_THE_BASE, *LOSS_MEANING])
def test_every_setting_with_a_rule_of_its_own_is_there(key: str) -> None:
    assert exists(key.split("."))


def test_every_key_of_an_example_is_there() -> None:
    for page in [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]:
        for block in re.findall(r"```yaml\n(.*?)```", page.read_text(), re.DOTALL):
            settings = yaml.safe_load(block)
            if isinstance(settings, dict) and settings.keys() <= set(SECTIONS):
                missing = [".".join(words) for words in keys_in(settings) if not exists(list(words))]
                assert missing == [], page
