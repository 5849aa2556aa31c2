"""Fields of documents: nested keys, and conditions on fields.

A condition is written as in Python, `language == 'en' and metadata.score > 3`. It is parsed by Python's own parser and
made of the parts that are listed here, nothing else; no part of it is executed as Python.
"""

import ast
import operator
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from decimal import Decimal
from functools import reduce
from typing import Any

import numpy as np
import numpy.typing as npt

from megatron_cpt.config.errors import BadInput, Fault


def key_parts(key: str) -> list[str]:
    """The keys of the objects on the way to a nested one: `metadata.score` to `metadata`, `score`."""
    return key.split(".")


def field_of(document: Mapping[str, Any], key: str, missing: Any = None) -> Any:
    """What stands under a key, which may be nested: `metadata.score`; `missing` where there is no such key.

    A key that is there as it is written, points included, wins over a nested one.
    """
    if key in document or "." not in key:
        return document.get(key, missing)
    value: Any = document
    for part in key_parts(key):
        if not isinstance(value, Mapping) or part not in value:
            return missing
        value = value[part]
    return value


Lookup = Callable[[str], Any]
"""A key to the value of a document; None where there is none."""
_Part = Callable[[Lookup], Any]
_HOW = (
    "Write comparisons (== != < <= > >= in, is None, is not None) of fields with texts, numbers, True, False, or lists "
    "of them, and join them with and, or, not and parentheses: \"language == 'en' and metadata.score > 3\". "
    "len(text) is a length; field('a-b') is a key that is no word of Python."
)


class Cell(str):
    """A text of a file that knows no kinds, CSV: beside a number it is the number that it says."""

    __slots__ = ()


class Unanswerable(Exception):
    """A document has not what a condition asks for; the message says what."""


@dataclass(frozen=True)
class Condition:
    """What documents must meet."""

    text: str
    """As it was written."""
    fields: tuple[str, ...]
    """The keys that it asks for, each once."""
    met: Callable[[Lookup], bool]
    """Whether a document meets it. Raises Unanswerable where a field that decides is not there, is null, or is of
    another kind than what it is compared with."""


def parse_condition(text: str) -> Condition:
    """A condition. Raises BadInput where it is none, or has a part that conditions do not have."""
    parser = _Parser()
    with _refused(text):
        met = parser.condition(ast.parse(text.strip(), mode="eval").body)
    return Condition(text, tuple(dict.fromkeys(parser.fields)), met)


@contextmanager
def _refused(text: str) -> Iterator[None]:
    """Turns what Python's parser and ours raise into BadInput."""
    try:
        yield
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        rule = error.msg if isinstance(error, SyntaxError) else (str(error) or type(error).__name__)
        raise BadInput(Fault(f"--where {text}", f"is no condition: {rule}.", _HOW)) from error


_ORDERS: dict[type[ast.cmpop], Callable[[Any, Any], bool]] = {
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
}


class _Parser:
    """Parts of a syntax tree to functions of a document. Raises ValueError for what has no part in a condition."""

    def __init__(self) -> None:
        self.fields: list[str] = []

    def condition(self, node: ast.expr) -> Callable[[Lookup], bool]:
        match node:
            case ast.BoolOp(op=op, values=values):
                parts = [self.condition(value) for value in values]
                every = all if isinstance(op, ast.And) else any
                return lambda lookup: every(part(lookup) for part in parts)
            case ast.UnaryOp(op=ast.Not(), operand=inner):
                negated = self.condition(inner)
                return lambda lookup: not negated(lookup)
            case ast.Compare():
                return self._comparisons(node)
            case _ if (key := _key(node)) is not None:
                return _truth(key, self._field(key))
        raise ValueError(f"{ast.unparse(node)} alone is neither true nor false")

    def _comparisons(self, node: ast.Compare) -> Callable[[Lookup], bool]:
        sides = [node.left, *node.comparators]
        parts = [self._comparison(*part) for part in zip(sides, node.ops, sides[1:], strict=False)]
        return lambda lookup: all(part(lookup) for part in parts)

    def _comparison(self, left: ast.expr, op: ast.cmpop, right: ast.expr) -> Callable[[Lookup], bool]:
        if isinstance(op, (ast.Is, ast.IsNot)):
            if not _is_none(right):
                raise ValueError(f"only None comes behind `is`, not {ast.unparse(right)}")
            value, there = self._operand(left), isinstance(op, ast.IsNot)
            return lambda lookup: (value(lookup) is not None) == there
        if _is_none(left) or _is_none(right):
            raise ValueError("None is compared with `is None` or `is not None`")
        names = ast.unparse(left), ast.unparse(right)
        one, other = self._operand(left), self._operand(right)
        if isinstance(op, (ast.In, ast.NotIn)):
            if isinstance(right, ast.Constant) and not isinstance(right.value, str):
                raise ValueError(f"nothing is in {names[1]}")
            inside = isinstance(op, ast.In)
            return lambda lookup: _is_in(one(lookup), other(lookup), names) == inside
        if any(isinstance(side, (ast.Tuple, ast.List)) for side in (left, right)):
            raise ValueError("a list comes behind `in`")
        compare = _ORDERS[type(op)]
        return lambda lookup: bool(compare(*_comparable(one(lookup), other(lookup), names)))

    def _operand(self, node: ast.expr) -> _Part:
        key = _key(node)
        if key is not None:
            return self._field(key)
        match node:
            case ast.Call(func=ast.Name(id="len"), args=[inner], keywords=[]) if (key := _key(inner)) is not None:
                return _length(key, self._field(key))
            case ast.Tuple(elts=items) | ast.List(elts=items):
                values = [_literal(item) for item in items]
                return lambda lookup: values
        value = _literal(node)
        return lambda lookup: value

    def _field(self, key: str) -> _Part:
        self.fields.append(key)
        return lambda lookup: lookup(key)


def condition_mask(text: str, column: Callable[[str], npt.NDArray[Any]]) -> npt.NDArray[np.bool_]:
    """Which documents meet a condition on numbers: bool[documents].

    `column` gives the numbers of a field, [documents], without a missing one. A limit is rounded as they are: 0.7 takes
    the documents whose number was 0.7 before it was kept in four bytes. Raises BadInput as `parse_condition` does, for
    texts and for `is None` too.
    """

    def mask(node: ast.expr) -> npt.NDArray[np.bool_]:
        match node:
            case ast.BoolOp(op=op, values=values):
                join = np.logical_and if isinstance(op, ast.And) else np.logical_or
                return reduce(join, map(mask, values))
            case ast.UnaryOp(op=ast.Not(), operand=inner):
                return ~mask(inner)
            case ast.Compare(left=left, ops=ops, comparators=comparators):
                sides = [left, *comparators]
                parts = [compared(*part) for part in zip(sides, ops, sides[1:], strict=False)]
                return reduce(np.logical_and, parts)
        raise ValueError(f"{ast.unparse(node)} alone is neither true nor false")

    def compared(left: ast.expr, op: ast.cmpop, right: ast.expr) -> npt.NDArray[np.bool_]:
        one = numbers(left)
        if isinstance(op, (ast.In, ast.NotIn)) and isinstance(right, (ast.Tuple, ast.List)):
            values = np.array([number(item) for item in right.elts])
            found = np.isin(one, values.astype(one.dtype) if np.asarray(one).dtype.kind == "f" else values)
            return found == isinstance(op, ast.In)
        if type(op) not in _ORDERS:
            raise ValueError(f"{ast.unparse(left)} is a number that is never missing, nor in {ast.unparse(right)}")
        return np.asarray(_ORDERS[type(op)](one, numbers(right)), np.bool_)

    def numbers(node: ast.expr) -> Any:
        key = _key(node)
        return number(node) if key is None else column(key)

    def number(node: ast.expr) -> float:
        value = _literal(node)
        if isinstance(value, str):
            raise ValueError(f"{value!r} is no number")
        return value

    with _refused(text):
        return mask(ast.parse(text.strip(), mode="eval").body)


def _key(node: ast.expr) -> str | None:
    """The key that a name, names joined by points, or field('name') stand for; None where a part is none of these."""
    match node:
        case ast.Name(id=name):
            return name
        case ast.Attribute(value=inner, attr=name):
            before = _key(inner)
            return None if before is None else f"{before}.{name}"
        case ast.Call(func=ast.Name(id="field"), args=[ast.Constant(value=str(name))], keywords=[]):
            return name
    return None


def _literal(node: ast.expr) -> str | int | float:
    match node:
        case ast.Constant(value=str() | int() | float() as value):
            return value
        case ast.UnaryOp(op=ast.USub(), operand=ast.Constant(value=int() | float() as number)):
            return -number
    raise ValueError(f"{ast.unparse(node)} has no part in one")


def _is_none(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) and node.value is None


def _truth(key: str, value: _Part) -> Callable[[Lookup], bool]:
    def met(lookup: Lookup) -> bool:
        found = value(lookup)
        _refuse_missing((key, found))
        if not isinstance(found, bool):
            raise Unanswerable(f"{key} is {_kind(found)}, not true or false as --where takes it")
        return found

    return met


def _length(key: str, value: _Part) -> _Part:
    def length(lookup: Lookup) -> int:
        found = value(lookup)
        _refuse_missing((key, found))
        if not isinstance(found, (str, list)):
            raise Unanswerable(f"{key} is {_kind(found)}, which has no length for --where")
        return len(found)

    return length


def _comparable(one: Any, other: Any, names: tuple[str, str]) -> tuple[Any, Any]:
    """Both, where they are two texts, numbers or truth values. Raises Unanswerable otherwise, and for NaN."""
    _refuse_missing((names[0], one), (names[1], other))
    one, other = _number_beside(one, other), _number_beside(other, one)
    kinds = _kind(one), _kind(other)
    if kinds[0] != kinds[1] or kinds[0] not in (_TEXT, _NUMBER, _BOOLEAN):
        raise Unanswerable(f"{names[0]} is {kinds[0]} and {names[1]} is {kinds[1]}, which --where cannot compare")
    for name, value in zip(names, (one, other), strict=True):
        if value != value:  # NaN, of floats and decimals
            raise Unanswerable(f"{name} is NaN, which --where cannot compare")
    return one, other


def _is_in(one: Any, other: Any, names: tuple[str, str]) -> bool:
    _refuse_missing((names[0], one), (names[1], other))
    if isinstance(one, str) and isinstance(other, str):
        return one in other
    if isinstance(other, list) and other:
        one = _number_beside(one, other[0])
    alike = [item for item in other if _kind(item) == _kind(one)] if isinstance(other, list) else []
    if not alike and other != []:
        raise Unanswerable(f"{names[0]} is {_kind(one)}, which cannot be in {names[1]} for --where")
    return one in alike


def _number_beside(value: Any, other: Any) -> Any:
    """The number that a cell says, where it stands beside one."""
    if isinstance(value, Cell) and _kind(other) == _NUMBER:
        try:
            return float(value)
        except ValueError:
            return value
    return value


def _refuse_missing(*values: tuple[str, Any]) -> None:
    """Raises Unanswerable for the first name without a value."""
    for name, value in values:
        if value is None:
            raise Unanswerable(f"no {name}, which --where asks for")


_TEXT, _NUMBER, _BOOLEAN = "a text", "a number", "true or false"


def _kind(value: Any) -> str:
    if isinstance(value, str):
        return _TEXT
    if isinstance(value, bool):
        return _BOOLEAN
    if isinstance(value, (int, float, Decimal)):
        return _NUMBER
    if isinstance(value, list):
        return "a list"
    return "an object" if isinstance(value, Mapping) else f"of type {type(value).__name__}"
