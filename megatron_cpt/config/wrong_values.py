"""What pydantic finds wrong with a configuration, in the words of the configuration.

An error of pydantic names a place (`('data', 'sources', 'code', 'wieght')`), a type of error and the
value found; here each becomes a Fault with the dotted key, the rule and the remedy.
"""

import dataclasses
import difflib
from collections.abc import Iterator
from types import UnionType
from typing import Annotated, Any, Union, get_args, get_origin, get_type_hints

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from megatron_cpt.config.errors import Fault
from megatron_cpt.config.schema import RunConfig
from megatron_cpt.config.units import Duration

Place = tuple[int | str, ...]


def faults_of(error: ValidationError) -> list[Fault]:
    """One fault for each wrong value, in the order of the configuration."""
    return [_fault(details) for details in error.errors()]


def _fault(details: ErrorDetails) -> Fault:
    place, found = details["loc"], details["input"]
    context = details.get("ctx", {})
    name = ".".join(map(str, place))
    shown = f"{name} = {_short(found)}"
    match details["type"]:
        case "missing":
            section = _section_at(place)
            remedy = f"Add the section. {_section_remedy(place)}" if section else f"Add `{name}` to the file."
            return Fault(name, "is required and was not given.", remedy)
        case "unexpected_keyword_argument":
            return Fault(name, "is not a setting.", _nearest(place))
        case _ if place[-1:] == ("[key]",):
            key = ".".join(map(str, place[:-2]))
            return Fault(f"{key}: {found!r}", "a name is a text.", f'Put quotes around it: "{found}".')
        case "dataclass_type" | "dict_type" | "mapping_type":
            return Fault(shown, "should be a section with keys of its own.", _section_remedy(place))
        case "list_type":
            return Fault(shown, "should be a list.", f"Write `{place[-1]}: [{_short(found)}]`.")
        case "string_type":
            one = not isinstance(found, dict | list | None)
            return Fault(shown, "should be a text.", "Put quotes around it." if one else "Write one text.")
        case "bool_type" | "bool_parsing":
            return Fault(shown, "should be true or false.", "Write one of the two.")
        case "literal_error":
            return Fault(shown, f"should be one of {context['expected'].replace(' or ', ', ')}.", "Write one of them.")
        case "greater_than":
            return Fault(shown, f"should be greater than {context['gt']:g}.", "Raise it.")
        case "greater_than_equal":
            return Fault(shown, f"should be at least {context['ge']:g}.", "Raise it.")
        case "less_than_equal":
            return Fault(shown, f"should be at most {context['le']:g}.", "Lower it.")
        case "finite_number":
            return Fault(shown, "should be a finite number.", "Write a number such as 0.1 or 1e-4.")
        case "value_error":
            # The validators of units.py say `rule; remedy`.
            rule, _, remedy = str(context["error"]).partition("; ")
            return Fault(shown, f"{rule}.", f"{remedy[:1].upper()}{remedy[1:]}.")
        case _:
            return Fault(shown, f"{details['msg'].removeprefix('Input ')}.", "Change it.")


def _short(value: Any) -> str:
    """A value as the user wrote it, near enough, and cut where it is long."""
    match value:
        case None:
            text = "(nothing)"
        case bool():
            text = str(value).lower()
        case str() | int() | float():
            text = str(value)
        case _:
            text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _section_remedy(place: Place) -> str:
    section = _section_at(place)
    keys = [field.name for field in dataclasses.fields(section)] if section else []
    return f"Its keys: {', '.join(keys)}." if keys else "Write `name: value` lines under it, or take it out."


def _nearest(place: Place) -> str:
    """What a key that is not known was likely meant to be."""
    parent, key = place[:-1], str(place[-1])
    section = _section_at(parent)
    siblings = [field.name for field in dataclasses.fields(section)] if section else []
    if close := difflib.get_close_matches(key, siblings, n=1):
        return f"The nearest is `{'.'.join(map(str, (*parent, close[0])))}`."
    everywhere = dict(_keys(RunConfig, ()))
    if close := difflib.get_close_matches(key, everywhere, n=1, cutoff=0.8):
        return f"The nearest is `{everywhere[close[0]]}`."
    return f"Known here: {', '.join(siblings)}."


def _section_at(place: Place) -> Any:
    """The section of schema.py at a place; None where there is none."""
    kind: Any = RunConfig
    for key in place:
        if get_origin(kind) in (dict, list):
            kind = _bare(get_args(kind)[-1])
        elif dataclasses.is_dataclass(kind) and isinstance(key, str):
            kind = _bare(get_type_hints(kind).get(key))
        else:
            return None
    return kind if _is_section(kind) else None


def _keys(section: Any, path: tuple[str, ...]) -> Iterator[tuple[str, str]]:
    """Every key below a section with its dotted name; where a key occurs twice the outermost comes last."""
    hints = {name: _bare(hint) for name, hint in get_type_hints(section).items() if not name.startswith("__")}
    for name, hint in hints.items():
        if get_origin(hint) is dict and _is_section(get_args(hint)[1]):
            yield from _keys(get_args(hint)[1], (*path, name, "NAME"))
        elif _is_section(hint):
            yield from _keys(hint, (*path, name))
    yield from ((name, ".".join((*path, name))) for name in hints)


def _bare(hint: Any) -> Any:
    """A type without `Annotated` and without `| None`."""
    if get_origin(hint) is Annotated:
        return _bare(get_args(hint)[0])
    if get_origin(hint) in (Union, UnionType):
        kinds = [kind for kind in get_args(hint) if kind is not type(None)]
        return _bare(kinds[0]) if len(kinds) == 1 else hint
    return hint


def _is_section(kind: Any) -> bool:
    return dataclasses.is_dataclass(kind) and kind is not Duration
