"""Every argument of Megatron-LM at core 0.16.1, and what becomes of it in a run.yaml: one table, and readers of lists.

The table is megatron_lm_arguments.tsv. Its columns: the flag and its other names; how many values it takes (`-` none);
their type; Megatron-LM's default; the attribute of `args`, where its name is another; the treatment; words.

| treatment | meaning | words |
|---|---|---|
| `key` | the value is that of a key | the key |
| `steps` | likewise, in steps | the key |
| `rule` | it decides a key together with others (import_arguments.py) | the key or section |
| `shape` | config.json of the model says it, and is compared | the field of ModelShape |
| `equal` | it changes nothing in what is trained | why |
| `refused` | it changes what is trained, and has no counterpart | why, and what to do |
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Literal, get_args

from megatron_cpt.config.errors import BadInput, Fault, refuse

RELEASE = "core 0.16.1"
Treatment = Literal["key", "steps", "rule", "shape", "equal", "refused"]


@dataclass(frozen=True)
class Argument:
    """One argument of Megatron-LM."""

    flags: tuple[str, ...]
    """Its names; the first is the usual one."""
    values: str
    """`-`: a switch; `1`, `3`: so many values; `+`, `*`: any number, for `+` at least one."""
    type: str
    """`int`, `float` or `text`; empty for a switch."""
    default: str
    """As it is typed; empty for None. Of a switch that stores false: `true`."""
    dest: str
    """Attribute of Megatron-LM's `args`."""
    treatment: Treatment
    words: str

    @property
    def flag(self) -> str:
        """The usual name."""
        return self.flags[0]

    @property
    def most(self) -> float:
        """Values that it takes at most."""
        return {"-": 0, "+": float("inf"), "*": float("inf")}.get(self.values) or float(self.values.strip("-+*") or 0)


@dataclass(frozen=True)
class Given:
    """An argument with the values that a list gives it."""

    flag: str
    """As it was typed."""
    values: tuple[str, ...]
    argument: Argument | None
    """None: it is none of the table."""
    shown: str | None = None
    """The key of a configuration that stands for it. None: it was typed."""
    unknown: str = ""
    """Why its values are not known, where they are not."""

    @property
    def text(self) -> str:
        """Flag and values as they were typed, or the key of a configuration."""
        return " ".join((self.flag, *self.values)) if self.shown is None else self.shown


@cache
def table() -> tuple[Argument, ...]:
    """All arguments, in the order of Megatron-LM's parser."""
    lines = files("megatron_cpt.planning").joinpath("megatron_lm_arguments.tsv").read_text().splitlines()
    return tuple(_argument(line.split("\t")) for line in lines[1:])


def _argument(row: Sequence[str]) -> Argument:
    names, values, kind, default, dest, treatment, words = row
    flags = tuple(names.split(" "))
    known = next(name for name in get_args(Treatment) if name == treatment)
    return Argument(flags, values, kind, default, dest or flags[0][2:].replace("-", "_"), known, words)


@cache
def by_flag() -> Mapping[str, Argument]:
    """The arguments by each of their names."""
    return {flag: argument for argument in table() for flag in argument.flags}


def read_words(words: Sequence[str], unknown: Mapping[str, str] | None = None) -> list[Given]:
    """An argument list, taken apart as Megatron-LM's parser does. Of a flag given twice the last holds.

    Args:
        unknown: words that stand for others, such as `$(date)`, and why these are not known. One that belongs to no
            flag is left out.
    Raises:
        BadInput: words belong to no flag, values are missing, or they are no numbers.
    """
    unknown = unknown or {}
    found: dict[str, Given] = {}
    faults: list[Fault] = []
    place = 0
    while place < len(words):
        flag, equals, value = words[place].partition("=")
        first = place
        place += 1
        if not _is_flag(flag) and words[first] in unknown:
            continue
        if not _is_flag(flag):
            faults.append(Fault(flag, "belongs to no flag.", "Give the arguments of pretrain_gpt.py alone."))
            continue
        argument = by_flag().get(flag)
        values = [value] if equals else []
        most = float("inf") if argument is None else argument.most
        while place < len(words) and len(values) < most and not _is_flag(words[place]):
            values.append(words[place])
            place += 1
        reasons = dict.fromkeys(unknown[word] for word in words[first:place] if word in unknown)
        given = Given(flag, tuple(values), argument, unknown="; ".join(reasons))
        faults += _value_faults(given)
        found.pop(argument.flag if argument else flag, None)
        found[argument.flag if argument else flag] = given
    if faults:
        raise BadInput(*faults)
    return list(found.values())


def refuse_unknown(given: Sequence[Given]) -> None:
    """Raises BadInput for values that are not known and that a run.yaml would have."""
    refuse(
        [
            Fault(each.text, f"has no known value: {each.unknown}.", f"Give it after `--`: `-- {each.flag} VALUE`.")
            for each in given
            if each.unknown and each.argument and each.argument.treatment not in ("equal", "refused")
        ]
    )


def _is_flag(word: str) -> bool:
    """Whether a word is a flag: it begins with dashes and is no negative number."""
    return word.startswith("-") and not word[1:2].isdigit() and word[1:2] != "."


def _value_faults(given: Given) -> Iterator[Fault]:
    argument = given.argument
    if argument is None:
        return
    needed = {"-": 0, "*": 0, "+": 1}.get(argument.values, int(argument.most) if argument.values.isdigit() else 0)
    if len(given.values) < needed:
        yield Fault(given.flag, f"takes {needed} {'value' if needed == 1 else 'values'}.", "Add what is missing.")
    for value in given.values if argument.type in ("int", "float") and not given.unknown else ():
        try:
            typed(argument, value)
        except ValueError:
            rule = f"{value!r} is not {'a whole number' if argument.type == 'int' else 'a number'}."
            yield Fault(given.text, rule, "Write one.")


def typed(argument: Argument, value: str) -> int | float | str:
    """A value by the argument's type. Raises ValueError."""
    return {"int": int, "float": float}.get(argument.type, str)(value)
