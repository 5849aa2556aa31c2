"""What becomes of each key of another program's configuration: tables, and what all importers of configurations share.

A table is PROGRAM_keys.tsv. Its columns: the key and others of the same treatment (`model.*` stands for all keys below
it); the program's default; the treatment; words.

| treatment | meaning | words |
|---|---|---|
| `key` | the value is that of a key | the key |
| `steps` | likewise, in steps | the key |
| `rule` | it decides a key together with others (import_trainer.py, import_nemo.py, import_olmo_core.py) | the key |
| `same` | it is another name of a key, or of an argument of Megatron-LM | that name |
| `shape` | config.json of the model says it, and is compared | the field of ModelShape |
| `equal` | it changes nothing in what is trained | why |
| `refused` | it changes what is trained, and has no counterpart. The default is never refused | why, and what to do |
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from math import isfinite
from pathlib import Path
from typing import Any, Literal, get_args

import yaml

from megatron_cpt.config.errors import Fault
from megatron_cpt.config.units import LARGEST_COUNT, parse_number
from megatron_cpt.corpus.stream import TokenStream
from megatron_cpt.families.family import ModelShape
from megatron_cpt.families.shape import read_shape
from megatron_cpt.planning.config_file import ConfigFile, Program
from megatron_cpt.planning.outcomes import ImportOptions, Outcome, Result, short
from megatron_cpt.planning.run_file import Entry

Treatment = Literal["key", "steps", "rule", "same", "shape", "equal", "refused"]
_CLASSES = ("_target_", "_call_", "_partial_", "_args_", "_CLASS_")
"""What a configuration says of the classes of its program (Hydra, Megatron-Bridge, OLMo-core)."""
_LONGEST_VALUE = 90
"""Characters of a value in the table."""


@dataclass(frozen=True)
class Key:
    """A key of a program."""

    name: str
    """Dotted; with `.*` at the end it stands for all keys below."""
    default: str
    """As YAML has it; empty for none."""
    treatment: Treatment
    words: str


@cache
def table(program: Program) -> tuple[Key, ...]:
    """All keys of a program, in the order of its tables. Of keys that two tables have, the first holds."""
    found: dict[str, Key] = {}
    for name in program.tables:
        for key in rows_of(name):
            found.setdefault(key.name, key)
    return tuple(found.values())


def rows_of(name: str) -> list[Key]:
    """The rows of one table, a key each."""
    lines = files("megatron_cpt.planning").joinpath(f"{name}_keys.tsv").read_text().splitlines()
    found = []
    for line in lines[1:]:
        names, default, treatment, words = line.split("\t")
        known = next(one for one in get_args(Treatment) if one == treatment)
        found += [Key(key, default, known, words) for key in names.split(" ")]
    return found


@cache
def _by_name(program: Program) -> Mapping[str, Key]:
    return {key.name: key for key in table(program)}


def key_of(program: Program, name: str) -> Key | None:
    """The row of a key: its own, or the longest that stands for all below."""
    rows = _by_name(program)
    parts = name.split(".")
    places = (".".join([*parts[:length], "*"]) for length in range(len(parts), 0, -1))
    return rows.get(name) or next((rows[place] for place in places if place in rows), None)


class ConfigTranslation:
    """A configuration on its way to a run.yaml: values by key, entries, and what became of each key."""

    def __init__(self, config: ConfigFile, options: ImportOptions) -> None:
        self.program, self.values, self.options = config.program, config.values, options
        self.entries: list[Entry] = []
        self.outcomes: list[Outcome] = []
        self.faults: list[Fault] = []
        self.model: str | None = None
        self._noted: set[str] = set()
        self._same: dict[str, str] = {}
        for row in table(self.program):
            if row.treatment == "same" and (row.name in self.values or row.words not in self._same):
                self._same[row.words] = row.name

    # --- access

    def name(self, key: str) -> str:
        """The name that a key has in the file, or in the program where the file does not have it."""
        return key if key in self.values else self._same.get(key, key)

    def has(self, key: str) -> bool:
        """Whether the file gives it a value that is not null."""
        return self.values.get(self.name(key)) is not None

    def value(self, key: str) -> Any:
        """Its value, or the program's default; None where there is none."""
        name = self.name(key)
        if (given := self.values.get(name)) is not None:
            return given
        row = key_of(self.program, name)
        return yaml.safe_load(row.default) if row is not None and row.default else None

    def number(self, key: str) -> float | None:
        """Its value as a number; None where there is none. A fault is noted for what is no number."""
        value = self.value(key)
        try:
            number = None if value is None else parse_number(value)
        except ValueError:
            number = float("nan")
        if number is not None and not (isfinite(number) and abs(number) <= LARGEST_COUNT):
            self.faults.append(Fault(self.text(key), "is no number that a run could have.", "Write one."))
            return None
        return number

    def numbers(self, key: str) -> list[float]:
        """Its value as numbers, from a list or a text with commas; none where it has none, or a fault was noted."""
        value = self.value(key)
        parts = value.split(",") if isinstance(value, str) else [] if value is None else value
        try:
            found = [parse_number(part) for part in parts]
        except (TypeError, ValueError):
            self.faults.append(Fault(self.text(key), "are no numbers.", "Write a list of them."))
            return []
        return found

    def whole(self, key: str) -> int | None:
        """Its value as a whole number; None where there is none."""
        number = self.number(key)
        if number is not None and number != int(number):
            self.faults.append(Fault(self.text(key), "is not a whole number.", "Write one."))
            return None
        return None if number is None else int(number)

    def positive(self, key: str) -> int:
        """Its value as a whole number from 1 on; 1 where there is none. A fault is noted for a smaller one."""
        number = self.whole(key)
        if number is not None and number < 1:
            self.faults.append(Fault(self.text(key), "is less than 1.", "Write a whole number from 1 on."))
        return max(1, number or 1)

    def switch(self, key: str) -> bool:
        """Whether its value is true; `auto` is."""
        value = self.value(key)
        return value is True or str(value).lower() in ("true", "auto", "yes")

    def text(self, key: str) -> str:
        """The key and its value as the table shows them."""
        name = self.name(key)
        value = self.values.get(name) if name in self.values else self.value(key)
        shown = yaml.safe_dump(value, default_flow_style=True, allow_unicode=True, width=10**6) if value != "" else "''"
        shown = " ".join(shown.removesuffix("\n").removesuffix("\n...").split())
        if len(shown) > _LONGEST_VALUE:
            shown = f"{shown[:_LONGEST_VALUE]} ..."
        return f"{name}: {shown}{'' if name in self.values else ' (default)'}"

    def tokens_of(self, name: str, path: str) -> int | None:
        """Tokens of a dataset: assumed ones by the name of its source, else what is there; None where nothing is."""
        if name in self.options.assumed:
            return self.options.assumed[name]
        return TokenStream([path]).tokens if Path(f"{path}.idx").is_file() else None

    # --- what becomes of keys

    def write(self, place: str, value: Any, comment: str | None = None) -> None:
        """A key of the run.yaml gets a value that no key alone decides."""
        self.entries.append(Entry(place, value, comment))

    def take(self, key: str, place: str, value: Any, remark: str = "", comment: str | None = None) -> None:
        """A key of the run.yaml gets the value of a key, or of its default."""
        self.write(place, value, comment)
        self.note(key, "taken", f"{place}: {short(value)}{f' ({remark})' if remark else ''}")

    def note(self, key: str, result: Result, words: str) -> None:
        """What became of a key, once."""
        name = self.name(key)
        if name not in self._noted:
            self._noted.add(name)
            self.outcomes.append(Outcome(self.text(key), result, words))

    def equal(self, *keys: str, words: str) -> None:
        """Keys of the file that change nothing."""
        for key in keys:
            if self.name(key) in self.values:
                self.note(key, "equal", words)

    def refuse(self, key: str, words: str) -> None:
        """A key of the file, or a default, that the run.yaml does not have."""
        self.note(key, "refused", words)

    def need(self, key: str, rule: str = "is not in the configuration.") -> None:
        """Notes that a key is missing: without it there is no run."""
        name = self.name(key)
        self.faults.append(Fault(name, rule, f"Add it after `--`: `-- {name}=VALUE`."))

    def compare_shape(self, shape: ModelShape | None) -> None:
        """What the configuration says of the model, beside its config.json."""
        for name in self.values:
            row = key_of(self.program, name)
            if row is None or row.treatment != "shape" or self.values[name] is None:
                continue
            if shape is None:
                self.equal(name, words="model.hf: config.json says it")
                continue
            here = getattr(shape, row.words)
            if here == self.values[name]:
                self.equal(name, words=f"model.hf: config.json says so ({row.words} {short(here)})")
            else:
                words = f"config.json of {self.model} has {row.words} {short(here)}. Give the model with --model"
                self.refuse(name, words)

    def rest(self) -> None:
        """What becomes of all keys that no rule has noted, by the table."""
        classes = [name for name in self.values if name.rpartition(".")[2] in _CLASSES and name not in self._noted]
        if classes:
            self.note(classes[0], "equal", f"names of classes ({len(classes)} of them)")
            self._noted |= set(classes)
        for name in self.values:
            if name not in self._noted:
                self._by_table(name, key_of(self.program, name))

    def _by_table(self, name: str, row: Key | None) -> None:
        value = self.values[name]
        if row is None:
            self.note(name, "unknown", f"is no key of {self.program.title} that is known here. See what it does there")
        elif value is None or row.treatment == "equal":
            self.note(name, "equal", row.words if row.treatment == "equal" else "null: nothing is set")
        elif row.treatment in ("key", "steps"):
            self.take(name, row.words, f"{value} steps" if row.treatment == "steps" else value)
        elif row.treatment == "refused" and is_default(value, row.default):
            self.note(name, "equal", f"the default of {self.program.title}")
        elif row.treatment == "refused":
            self.note(name, "refused", row.words)
        else:
            self.note(name, "equal", f"nothing else of the file makes use of it ({row.words})")


def is_default(value: Any, default: str) -> bool:
    """Whether a value is a default, or switches something off that has none."""
    if not default or default == "null":
        return value in (False, 0, "", "none", "no") or value == [] or value == {}
    known = yaml.safe_load(default)
    try:
        return value == known or parse_number(value) == parse_number(known)
    except ValueError:
        return str(value).lower() == str(known).lower()


def find_model(translation: ConfigTranslation, key: str | None) -> ModelShape | None:
    """Settles `model.hf`: `--model`, else the folder that a key names. Returns its shape where it is there.

    A name of the Hugging Face Hub stands in the run.yaml with the command that fetches it.
    """
    given = translation.options.model
    named = translation.value(key) if key is not None else None
    if named and not isinstance(named, str) and given is None and key is not None:
        rule = "is not the name of one Hugging Face folder."
        translation.faults.append(Fault(translation.text(key), rule, "Name one, or give it with --model."))
        return None
    model = given or (str(named) if named else None)
    if model is None:
        rule = "is not named, and the configuration has no Hugging Face folder."
        translation.faults.append(Fault("the model", rule, "Give it with --model."))
        return None
    translation.model = model
    there = Path(model, "config.json").is_file()
    if given is not None and not there:
        fault = Fault(f"--model {given}", "there is no config.json in it.", "Name a Hugging Face folder.")
        translation.faults.append(fault)
    elif key is None or named != model:
        translation.write("model.hf", model)
        if key is not None and named:
            translation.note(key, "equal", f"--model is read instead: {model}")
    elif there:
        translation.take(key, "model.hf", model)
    else:
        translation.write("model.hf", model)
        folder = model.rstrip("/").rpartition("/")[2]
        words = (
            f"There is no such folder here. `hf download {model} --local-dir {folder}`, then model.hf: {folder}; or "
            "name a folder with --model"
        )
        translation.refuse(key, words)
    return read_shape(model) if there else None


def roles(translation: ConfigTranslation, names: Sequence[str], paths: Sequence[str]) -> set[str]:
    """The sources whose role is replay. A fault is noted for a `--replay` that names none."""
    for name in translation.options.replay:
        if name not in (*names, *paths):
            known = ", ".join(names) or "none"
            rule = f"names no dataset of the configuration (there are: {known})."
            translation.faults.append(Fault(f"--replay {name}", rule, "Name one of them."))
    asked = set(translation.options.replay)
    return {name for name, path in zip(names, paths, strict=True) if {name, path} & asked}
