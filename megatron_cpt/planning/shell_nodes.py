"""The commands of a bash script as data, and what can be told of them without following them."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

DECLARATIONS = frozenset({"export", "declare", "typeset", "local", "readonly"})
PROGRAM = re.compile(r".*\bpretrain_\w+\.py", re.DOTALL)
CALL = re.compile(r"\bpretrain_\w+\.py\s")
NO_LAUNCHER = re.compile(
    r"echo|printf|cat|tee|ls|cp|mv|rm|ln|chmod|grep|sed|awk|git|pkill|kill|pgrep|killall|test|\[|trap|alias|which|rsync|"
    r"scp|:|true|false|wc|diff"
)
"""Programs that do not start one whose name stands in their arguments."""
CHANGE = re.compile(r"(\+\+|--)([A-Za-z_]\w*)|([A-Za-z_]\w*)\s*(\+\+|--|[-+*/%]?=(?!=)(.*))", re.DOTALL)
"""What `(( ))` does to a variable."""


class Word(NamedTuple):
    """A word as it is written, with its quotes."""

    text: str
    line: int


class Assignment(NamedTuple):
    """`NAME=VALUE`, `NAME+=(A B)`, `NAME[KEY]=VALUE`."""

    name: str
    key: Word | None
    """Subscript of an element."""
    adds: bool
    value: Word | tuple[Word, ...]
    """Words of an array stand in a tuple."""


class HereDocument(NamedTuple):
    """Lines that a command reads."""

    text: str
    line: int
    """Of its first line."""
    is_quoted: bool
    """Whether variables in it stay as they are."""


@dataclass
class Node:
    """A command."""

    line: int
    text: str = field(init=False, default="")
    """As it is written, blanks made one."""


@dataclass
class Simple(Node):
    """Assignments and a command with its words; either may be missing."""

    assignments: list[Assignment]
    words: list[Word]
    documents: list[HereDocument]


@dataclass
class Test(Node):
    """`[[ ... ]]`."""

    words: list[Word]


@dataclass
class Arithmetic(Node):
    """`(( ... ))`."""

    expression: str


@dataclass
class If(Node):
    """Conditions with their commands, and those of `else`."""

    branches: list[tuple[list[Node], list[Node]]]
    otherwise: list[Node]


@dataclass
class For(Node):
    """`for NAME in WORDS` (words None: the parameters), and `select`."""

    name: str
    words: list[Word] | None
    body: list[Node]


@dataclass
class While(Node):
    """`while` and `until`, and `for ((first; condition; each))`, whose parts are Arithmetic."""

    until: bool
    condition: list[Node]
    body: list[Node]
    first: Node | None = None
    each: Node | None = None


@dataclass
class Case(Node):
    """A word, and patterns with their commands."""

    word: Word
    branches: list[tuple[list[Word], list[Node]]]


@dataclass
class Group(Node):
    """`{ ... }`, and `( ... )`, which keeps its variables to itself."""

    body: list[Node]
    isolated: bool


@dataclass
class Function(Node):
    """A function that is defined."""

    name: str
    body: list[Node]


@dataclass
class Pipeline(Node):
    """Commands of which each reads what the one before it writes."""

    negated: bool
    commands: list[Node]


@dataclass
class AndOr(Node):
    """Commands joined by `&&` and `||`, which stand before each but the first."""

    parts: list[tuple[str, Node]]


def simple_commands(nodes: Sequence[Node]) -> Iterator[Node]:
    """The commands without commands of their own in them, however deep; not those of functions."""
    for node in nodes:
        match node:
            case If(branches=branches, otherwise=otherwise):
                for condition, body in branches:
                    yield from simple_commands([*condition, *body])
                yield from simple_commands(otherwise)
            case While(condition=condition, body=body, first=first, each=each):
                yield from simple_commands([*(filter(None, [first, each])), *condition, *body])
            case For(name=name, body=body):
                yield Simple(node.line, [Assignment(name, None, False, Word("", node.line))], [], [])
                yield from simple_commands(body)
            case Group(body=body):
                yield from simple_commands(body)
            case Case(branches=cases):
                for _, body in cases:
                    yield from simple_commands(body)
            case Pipeline(commands=commands):
                yield from simple_commands(commands)
            case AndOr(parts=parts):
                yield from simple_commands([part for _, part in parts])
            case _:
                yield node


def has_call(nodes: Sequence[Node], functions: Mapping[str, Sequence[Node]], depth: int = 0) -> bool:
    """Whether commands, or functions that they call, start the training program."""
    for node in simple_commands(nodes):
        words = node.words if isinstance(node, Simple) else []
        named = any(re.search(r"\bpretrain_\w+\.py", word.text) for word in words)
        if named and not NO_LAUNCHER.fullmatch(words[0].text):
            return True
        if words and depth < 5 and has_call(functions.get(words[0].text, []), functions, depth + 1):
            return True
    return False


def ends(nodes: Sequence[Node], functions: Mapping[str, Sequence[Node]]) -> bool:
    """Whether commands end the script or the function."""
    if not nodes:
        return False
    last = nodes[-1]
    if isinstance(last, Group) and not last.isolated:
        return ends(last.body, functions)
    if isinstance(last, Simple) and last.words:
        name = last.words[0].text
        body = functions.get(name, [])
        return name in ("exit", "return") or (bool(body) and body is not nodes and _is_exit(body[-1]))
    return False


def assigned_names(nodes: Sequence[Node], functions: Mapping[str, Sequence[Node]], depth: int = 0) -> Iterator[str]:
    """Variables that commands set, in words where they have no name."""
    for node in simple_commands(nodes):
        if isinstance(node, Simple):
            yield from (assignment.name for assignment in node.assignments if _lasts(node))
            words = [word.text for word in node.words]
            yield from _set_by(words)
            if words and depth < 5:
                yield from assigned_names(functions.get(words[0], []), functions, depth + 1)
        elif isinstance(node, Arithmetic) and (change := CHANGE.fullmatch(node.expression.strip())):
            yield change[2] or change[3]


def _set_by(words: Sequence[str]) -> Iterator[str]:
    """Variables that the words of a command set."""
    match words:
        case ["read" | "mapfile" | "readarray" | "unset" | "getopts", *names]:
            yield from filter(str.isidentifier, names)
        case ["printf", "-v", name, *_]:
            yield name
        case ["eval" | "let", *texts]:
            yield from re.findall(r"\b([A-Za-z_]\w*)[-+*/]?=", " ".join(texts))
        case ["source" | ".", file, *_]:
            yield f"what {file} sets"
        case ["set", "--", *_] | ["shift", *_]:
            yield "the parameters"


def asks(node: Node) -> bool:
    """Whether a command is there to find something out, and may well fail."""
    match node:
        case Pipeline(negated=negated, commands=commands):
            return negated or asks(commands[-1])
        case Group(body=[*_, last]):
            return asks(last)
        case AndOr(parts=[*_, (_, last)]):
            return asks(last)
        case Simple(words=[Word(text=text), *_]):
            return _QUESTIONS.fullmatch(text) is not None
    return isinstance(node, Test | Arithmetic)


_QUESTIONS = re.compile(r"\[|test|grep|command|which|type|hash|pgrep|diff|cmp|read|getopts|nvidia-smi")


def _is_exit(node: Node) -> bool:
    return isinstance(node, Simple) and [word.text for word in node.words[:1]] == ["exit"]


def _lasts(node: Simple) -> bool:
    """Whether assignments hold after the command."""
    return not node.words or node.words[0].text in DECLARATIONS
