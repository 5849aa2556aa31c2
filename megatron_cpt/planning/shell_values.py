"""What variables of a bash script hold, and the rules of its patterns and of its arithmetic."""

import ast
import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

MARK = re.compile("\x02(\\d+)\x03")
"""What stands in a text for what is not known: a number of a gap."""
NULL = "\x04"
"""Stands in a word for an empty text in quotes, which is a word."""


@dataclass(frozen=True)
class Gap:
    """Something that is not known."""

    kind: Literal["unset", "parameter", "hidden", "unknown"]
    """`unset`, `hidden` (set, and not exported) and `parameter` (of the script) are empty."""
    text: str
    """As it is written."""
    line: int
    why: str = ""
    """Of what is unknown, the rest of a sentence that begins with the text."""


Kept = tuple[str | None, dict[str, str] | None]
"""The text and the elements of a variable."""


@dataclass
class Variables:
    """What is set at a place of a script."""

    name: str
    """`$0`."""
    texts: dict[str, str] = field(default_factory=dict)
    arrays: dict[str, dict[str, str]] = field(default_factory=dict)
    """Elements by their keys, for an array without names the numbers from 0."""
    parameters: list[str] = field(default_factory=list)
    """`$1`, `$2`, ..."""
    of_function: bool = False
    """Whether the parameters are those of a function."""
    exported: set[str] = field(default_factory=set)
    exports_all: bool = False
    """Whether all that is set is exported (`set -a`)."""
    hidden: frozenset[str] = frozenset()
    """Names that the shell around this one has set and not exported."""

    def copied(self) -> "Variables":
        """Another one with the same content."""
        return replace(
            self,
            texts=dict(self.texts),
            arrays={name: dict(elements) for name, elements in self.arrays.items()},
            parameters=list(self.parameters),
            exported=set(self.exported),
        )

    def inherited(self, words: Sequence[str]) -> "Variables":
        """Those of a shell that this one starts with `$0`, `$1`, ..."""
        texts = {name: text for name, text in self.texts.items() if name in self.exported}
        hidden = frozenset((self.texts.keys() | self.arrays.keys()) - texts.keys())
        name, *parameters = words or [self.name]
        return Variables(name, texts, parameters=parameters, exported=set(texts), hidden=hidden)

    def set(self, name: str, text: str) -> None:
        """Gives a variable a text; an array's first element is meant by its name."""
        if name in self.arrays:
            self.arrays[name]["0"] = text
        else:
            self.texts[name] = text
        if self.exports_all:
            self.exported.add(name)

    def kept(self, name: str) -> Kept:
        """What a name holds."""
        elements = self.arrays.get(name)
        return self.texts.get(name), None if elements is None else dict(elements)

    def restore(self, kept: Mapping[str, Kept]) -> None:
        """Gives names what they held."""
        for name, (text, elements) in kept.items():
            self.unset(name)
            if text is not None:
                self.texts[name] = text
            if elements is not None:
                self.arrays[name] = elements

    def unset(self, name: str) -> None:
        """Forgets a variable."""
        self.texts.pop(name, None)
        self.arrays.pop(name, None)


def plain(text: str) -> str:
    """A text without its marks: what is not known is empty."""
    return MARK.sub("", text).replace(NULL, "")


def pattern_regex(pattern: str) -> str:
    """The regular expression of a pattern: `*`, `?`, `[...]`; a backslash takes the meaning from a letter."""
    found, place = "", 0
    while place < len(pattern):
        letter = pattern[place]
        if letter == "\\" and place + 1 < len(pattern):
            place += 1
            found += re.escape(pattern[place])
        elif letter in "*?":
            # Repeated stars mean no more than one, and take very long.
            found += "." if letter == "?" else "" if found.endswith(".*") else ".*"
        elif letter == "[" and (end := pattern.find("]", place + 2)) > 0:
            inner = pattern[place + 1 : end].replace("\\", "\\\\").replace("[", "\\[")
            found += f"[{'^' + inner[1:] if inner[0] in '!^' else inner}]"
            place = end
        else:
            found += re.escape(letter)
        place += 1
    return found


def replacement(sign: str, pattern: str, new: str) -> Callable[[str], str]:
    """The function of `#`, `##`, `%`, `%%` and `/`, with a regular expression of the pattern."""
    whole = re.compile(pattern, re.DOTALL)

    def cut(text: str) -> str:
        places = range(len(text) + 1)
        for place in places if sign in ("#", "%%") else reversed(places):
            if whole.fullmatch(text[:place] if sign[0] == "#" else text[place:]):
                return text[place:] if sign[0] == "#" else text[:place]
        return text

    if sign[0] in "#%":
        return cut
    sought = re.compile({"/#": rf"\A(?:{pattern})", "/%": rf"(?:{pattern})\Z"}.get(sign, pattern), re.DOTALL)
    return lambda text: sought.sub(lambda _: new, text, count=0 if sign == "//" else 1)


# --- whole numbers


def whole_number(expression: str, variables: Variables, depth: int = 0) -> int:
    """The value of an expression of whole numbers.

    Raises ValueError where a name is not set, a sign is not understood, or the value is larger than a shell's.
    """
    text = re.sub(r"\s+", " ", expression.strip())
    text = text.replace("&&", " and ").replace("||", " or ")
    text = re.sub(r"!(?!=)", " not ", text).strip()
    if len(text) > 1000 or depth > 20:
        raise ValueError("too long")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Python's own, of `1and`
            tree = ast.parse(text, mode="eval")
        return _number(tree.body, variables, depth)
    except (SyntaxError, ZeroDivisionError, RecursionError, MemoryError) as error:
        raise ValueError("no expression") from error


def _number(node: ast.expr, variables: Variables, depth: int) -> int:
    match node:
        case ast.Constant(value=int(value)):
            return value
        case ast.Name(id=name) if name in variables.texts:
            return whole_number(variables.texts[name], variables, depth + 1)
        case ast.BinOp(left=left, op=operator, right=right) if type(operator) in _OPERATORS:
            sides = _number(left, variables, depth), _number(right, variables, depth)
            return _in_range(_OPERATORS[type(operator)](*sides))
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            return -_number(operand, variables, depth)
        case ast.UnaryOp(op=ast.UAdd(), operand=operand):
            return _number(operand, variables, depth)
        case ast.UnaryOp(op=ast.Not(), operand=operand):
            return int(not _number(operand, variables, depth))
        case ast.BoolOp(op=operator, values=values):
            numbers = [bool(_number(value, variables, depth)) for value in values]
            return int(any(numbers) if isinstance(operator, ast.Or) else all(numbers))
        case ast.Compare(left=left, ops=[operator], comparators=[right]) if type(operator) in _COMPARISONS:
            sides = _number(left, variables, depth), _number(right, variables, depth)
            return int(_COMPARISONS[type(operator)](*sides))
    raise ValueError("neither numbers nor names")


def _in_range(value: int) -> int:
    if abs(value) >= 1 << 63:
        raise ValueError("larger than a shell's numbers")
    return value


def _power(left: int, right: int) -> int:
    if not 0 <= right < 64:
        raise ValueError("no power of a shell")
    return int(left**right)


def _quotient(left: int, right: int) -> int:
    """A shell rounds towards zero."""
    return abs(left) // abs(right) * (1 if (left < 0) == (right < 0) else -1)


_OPERATORS: Mapping[type[ast.operator], Callable[[int, int], int]] = {
    ast.Add: lambda left, right: left + right,
    ast.Sub: lambda left, right: left - right,
    ast.Mult: lambda left, right: left * right,
    ast.Div: _quotient,
    ast.Mod: lambda left, right: left - right * _quotient(left, right),
    ast.Pow: _power,
}
_COMPARISONS: Mapping[type[ast.cmpop], Callable[[int, int], bool]] = {
    ast.Eq: lambda left, right: left == right,
    ast.NotEq: lambda left, right: left != right,
    ast.Lt: lambda left, right: left < right,
    ast.LtE: lambda left, right: left <= right,
    ast.Gt: lambda left, right: left > right,
    ast.GtE: lambda left, right: left >= right,
}
