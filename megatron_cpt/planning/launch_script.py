"""The arguments of pretrain_gpt.py in a shell script, read without running it.

Understood: assignments of words and arrays, `+=`, `$NAME`, `${NAME[@]}`, `${NAME:-default}`, `$((A*B))`, comments,
continued lines, and `if` with `[ ]` or `[[ ]]` that compares texts. What is not understood is a note, or an error where
the arguments depend on it: `bash -x SCRIPT` prints them, and the list can be given itself.
"""

import ast
import os
import re
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from megatron_cpt.config.errors import BadInput, Fault

_PUNCTUATION = "\n;&|()<>"
_QUOTED = "\x01"
"""Stands after a quote that opens, in texts and tokens that are not yet expanded."""
_ASSIGNED = re.compile(r"([A-Za-z_]\w*)(\+?)=(.*)", re.DOTALL)
_NAMED = re.compile(r"\$(?:\{([A-Za-z_]\w*|[0-9@*])(\[[@*]\])?(?:(:?[-=])([^{}]*))?\}|([A-Za-z_]\w*|[0-9@*]))")
_ARITHMETIC = re.compile(r"\$\(\(([^()]*(?:\([^()]*\)[^()]*)*)\)\)")
_COMMAND = re.compile(r"\$\([^()]*\)|`[^`]*`")
_OPERATOR = re.compile(r"&&|\|\||;;|.", re.DOTALL)
_BLANKS = re.compile(r"[\s${}]")
_PROGRAM = re.compile(r".*\bpretrain_\w+\.py$")
_OPENING = {"then", "do", "else", "{", "export", "exec", "time", "local", "readonly", "declare"}


@dataclass
class _Script:
    """What a script has said so far."""

    texts: dict[str, str] = field(default_factory=dict)
    arrays: dict[str, list[str]] = field(default_factory=dict)
    commands: list[list[str]] = field(default_factory=list)
    """Words of each command that starts the training program."""
    unread: list[str] = field(default_factory=list)
    """What was left out, a sentence each."""
    unset: set[str] = field(default_factory=set)
    """Variables that assignments and the call use and that the script does not set: empty, as in a shell."""
    missing: set[str] = field(default_factory=set)
    """Parameters of the script, such as `1`, that it needs and that were not given."""


@dataclass(frozen=True)
class Launch:
    """The call of the training program in a script."""

    launcher: tuple[str, ...]
    """Words before the program: torchrun and its arguments."""
    arguments: tuple[str, ...]
    """Words after it."""
    unread: tuple[str, ...]
    """What was left out of the script, a sentence each."""

    @property
    def ranks(self) -> int | None:
        """Ranks that torchrun is told to start; None where it says nothing."""
        words = [part for word in self.launcher for part in word.split("=", 1)]
        sizes = {}
        for name, value in pairwise(words):
            flag = name.lstrip("-").replace("_", "-")
            if name.startswith("-") and flag in ("nproc-per-node", "nnodes") and value.isdecimal():
                sizes[flag] = int(value)
        return sizes["nproc-per-node"] * sizes.get("nnodes", 1) if "nproc-per-node" in sizes else None


def read_script(text: str, name: str, parameters: Sequence[str] = ()) -> Launch:
    """The call of pretrain_gpt.py in a script, or an argument list that a file holds.

    Args:
        parameters: what the script is called with: `$1`, `$2`, ...
    Raises:
        BadInput: there is no call or there are several, or the script needs parameters that were not given.
    """
    script = _Script(texts={str(number): word for number, word in enumerate(parameters, start=1)})
    _run(_tokens(text), script)
    commands = script.commands or _in_texts(script)
    if not commands and text.lstrip().startswith("--"):
        return Launch((), tuple(shlex.split(text, comments=True)), ())
    if len(commands) != 1:
        found = "no call" if not commands else f"{len(commands)} calls"
        rule = f"{found} of pretrain_gpt.py can be read in it."
        remedy = "Give the argument list itself: `megatron-cpt import-args -- --num-layers ...` (`bash -x` prints it)."
        if name.endswith(".py"):
            rule = "is a Python program, and nothing is executed."
            remedy = "Give the configuration that it makes, as YAML, or the arguments of its run after `--`."
        raise BadInput(Fault(name, rule, remedy))
    if script.missing:
        rule = f"needs its own parameters ${', $'.join(sorted(script.missing))}."
        raise BadInput(Fault(name, rule, "Give them after its name: `megatron-cpt import-args SCRIPT A B`."))
    [words] = commands
    place = next(place for place, word in enumerate(words) if _PROGRAM.fullmatch(word))
    unset = f"not set in the script, and taken as empty: ${', $'.join(sorted(script.unset))}"
    return Launch(tuple(words[:place]), tuple(words[place + 1 :]), (*script.unread, *([unset] if script.unset else [])))


def _tokens(text: str) -> list[str]:
    """The words and operators of a script. Arithmetic is worked out later, from a text without blanks."""
    text = re.sub(r"\\\r?\n", " ", text)
    text = _marked(text)
    text = _ARITHMETIC.sub(lambda found: f"$[{_BLANKS.sub('', found[1])}]", text)
    text = _COMMAND.sub("$[?]", text)
    lexer = shlex.shlex(text, posix=True, punctuation_chars=_PUNCTUATION)
    lexer.whitespace, lexer.whitespace_split, lexer.commenters = " \t\r", True, ""
    tokens: list[str] = []
    try:
        for token in lexer:
            # Operators that touch come as one.
            tokens += _OPERATOR.findall(token) if token and set(token) <= set(_PUNCTUATION) else [token]
    except ValueError as error:
        raise BadInput(Fault("the script", f"cannot be read: {error}.", "Give the argument list itself.")) from error
    return tokens


def _marked(text: str) -> str:
    """The script without its comments, `_QUOTED` after every quote that opens: what stands in quotes is one word."""
    found: list[str] = []
    quote, place = "", 0
    while place < len(text):
        letter = text[place]
        if letter == "\\" and quote != "'":
            found.append(text[place : place + 2])
            place += 2
            continue
        if not quote and letter == "#" and (not found or found[-1][-1] in f" \t\r{_PUNCTUATION}"):
            end = text.find("\n", place)
            place = len(text) if end < 0 else end
            continue
        found.append(letter)
        if letter == quote:
            quote = ""
        elif not quote and letter in "\"'":
            quote = letter
            found.append(_QUOTED)
        place += 1
    return "".join(found)


def _run(tokens: Sequence[str], script: _Script) -> None:
    """Takes assignments and calls in the order of the script."""
    place = 0
    while place < len(tokens):
        if tokens[place] == "if":
            place = _branch(tokens, place, script)
            continue
        place = _statement(tokens, place, script)


def _statement(tokens: Sequence[str], place: int, script: _Script) -> int:
    """One assignment or command from `place` on; returns the place after it."""
    if tokens[place] in _OPENING or tokens[place] in {"\n", ";", "&", "&&", "||", "(", ")", "|"}:
        return place + 1
    if assigned := _ASSIGNED.fullmatch(tokens[place]):
        name, add, value = assigned.groups()
        if not value and place + 1 < len(tokens) and tokens[place + 1] == "(":
            end = tokens.index(")", place)
            words = [word for token in tokens[place + 2 : end] if token != "\n" for word in _words(token, script)]
            script.arrays[name] = [*(script.arrays.get(name, []) if add else []), *words]
            return end + 1
        script.texts[name] = (script.texts.get(name, "") if add else "") + _expanded(value, script)
        return place + 1
    end = place
    while end < len(tokens) and tokens[end] not in ("\n", ";", "&", "&&", "||", "|", ")", "<", ">"):
        end += 1
    last = end
    if end < len(tokens) and tokens[end] in ("<", ">") and tokens[end - 1].isdecimal():
        last -= 1  # the 2 of 2>&1
    unset = set(script.unset)
    words = [word for token in tokens[place:last] for word in _words(token, script)]
    if any(_PROGRAM.fullmatch(word) for word in words[:-1]) and not words[0].startswith(("[", "echo")):
        script.commands.append(words)
    else:
        script.unset = unset
    if words[:1] in (["source"], ["."]):
        script.unread.append(f"not read: {' '.join(words[1:])}, which the script reads")
    if tokens[place + 1 : place + 3] == ["(", ")"]:
        script.unread.append(f"read where it stands, not where it is called: the function {tokens[place]}")
    return max(end, place + 1)


def _branch(tokens: Sequence[str], place: int, script: _Script) -> int:
    """An `if` to its `fi`: the branch that holds. Of conditions that cannot be decided no branch is taken."""
    end, depth = place, 0
    marks: list[int] = []
    while True:
        if end == len(tokens):
            raise BadInput(Fault("the script", "has an `if` without `fi`.", "Give the argument list itself."))
        at_start = end == 0 or tokens[end - 1] in {"\n", ";", *_OPENING, "&&", "||"}
        if at_start and tokens[end] == "if":
            depth += 1
        elif at_start and tokens[end] == "fi":
            depth -= 1
            if not depth:
                break
        elif at_start and depth == 1 and tokens[end] in ("then", "elif", "else"):
            marks.append(end)
        end += 1
    bounds = [place, *marks, end]
    decided: bool | None = False
    for first, last in pairwise(bounds):
        part = tokens[first + 1 : last]
        if tokens[first] in ("if", "elif"):
            decided = _holds(part, script)
            if decided is None:
                condition = " ".join(word.replace(_QUOTED, "") for word in part if word != "\n").rstrip("; ")
                script.unread.append(f"left out, for it cannot be decided here: if {condition}")
                break
        elif tokens[first] == "else" or decided:
            _run(part, script)
            break
    return end + 1


def _holds(tokens: Sequence[str], script: _Script) -> bool | None:
    """Whether a condition holds; None where it cannot be known."""
    words = [token for token in tokens if token not in ("[", "[[", "]", "]]", "\n", ";")]
    for joint, decide in (("||", any), ("&&", all)):
        if joint in words:
            place = words.index(joint)
            sides = [_holds(words[:place], script), _holds(words[place + 1 :], script)]
            return None if None in sides else decide(sides)
    if words[:1] == ["!"]:
        inner = _holds(words[1:], script)
        return None if inner is None else not inner
    texts = [_expanded(word, script) for word in words]
    if any("$[?]" in text for text in texts):
        return None
    match texts:
        case ["-z", text]:
            return not text
        case ["-n", text]:
            return bool(text)
        case [left, "=" | "==" | "-eq", right]:
            return left == right
        case [left, "!=" | "-ne", right]:
            return left != right
        case [left, "-gt" | "-ge" | "-lt" | "-le" as sign, right] if left.isdecimal() and right.isdecimal():
            return _ORDERS[sign](int(left), int(right))
    return None


_ORDERS: Mapping[str, Callable[[int, int], bool]] = {
    "-gt": lambda left, right: left > right,
    "-ge": lambda left, right: left >= right,
    "-lt": lambda left, right: left < right,
    "-le": lambda left, right: left <= right,
}


def _words(token: str, script: _Script) -> list[str]:
    """The words that a word of the script becomes: an array is all of its, and a text is parted at blanks."""
    is_quoted, token = _QUOTED in token, token.replace(_QUOTED, "")
    whole = _NAMED.fullmatch(token)
    name = whole and (whole[1] or whole[5])
    if name in script.arrays and whole and (whole[2] or not script.texts.get(name)):
        if is_quoted:
            return list(script.arrays[name])
        return [word for each in script.arrays[name] for word in shlex.split(each)]
    if is_quoted:
        return [_expanded(token, script)]
    try:
        return shlex.split(_expanded(token, script))
    except ValueError:
        return _expanded(token, script).split()


def _expanded(text: str, script: _Script) -> str:
    """A text with its variables; what is not set is empty, as in a shell."""
    text = text.replace(_QUOTED, "")

    def value(found: re.Match[str]) -> str:
        name = found[1] or found[5]
        if name in script.arrays:
            return " ".join(script.arrays[name])
        known = script.texts.get(name)
        if found[3] and (known is None or (found[3].startswith(":") and not known)):
            return _expanded(found[4].strip("\"'"), script)
        if known is None and name.isdecimal() and name != "0":
            script.missing.add(name)
        if known is None and name.isidentifier() and name not in ("PWD", "HOME"):
            script.unset.add(name)
        return {"PWD": os.curdir, "HOME": os.path.expanduser("~")}.get(name, "") if known is None else known

    return re.sub(r"\$\[([^\]]*)\]", lambda found: _product(found[1], script), _NAMED.sub(value, text))


def _product(text: str, script: _Script) -> str:
    """The value of `A*B`, with names or numbers; `$[?]` where it cannot be known."""
    try:
        return str(_number(ast.parse(text, mode="eval").body, script))
    except (SyntaxError, ValueError, ZeroDivisionError):
        return "$[?]"


def _number(node: ast.expr, script: _Script) -> int:
    """The value of an expression of whole numbers and names. Raises ValueError for any other."""
    match node:
        case ast.Constant(value=int(value)):
            return value
        case ast.Name(id=name):
            return int(script.texts.get(name, "?"))
        case ast.BinOp(left=left, op=operator, right=right) if type(operator) in _OPERATORS:
            return _OPERATORS[type(operator)](_number(left, script), _number(right, script))
    raise ValueError("neither numbers nor names")


_OPERATORS: Mapping[type[ast.operator], Callable[[int, int], int]] = {
    ast.Add: lambda left, right: left + right,
    ast.Sub: lambda left, right: left - right,
    ast.Mult: lambda left, right: left * right,
    ast.Div: lambda left, right: left // right,
}


def _in_texts(script: _Script) -> list[list[str]]:
    """Calls that are kept in a variable, for `srun` or `eval`."""
    found = [_split(text) for text in script.texts.values()]
    return [words for words in found if any(_PROGRAM.fullmatch(word) for word in words[:-1])]


def _split(text: str) -> list[str]:
    try:
        return shlex.split(text)
    except ValueError:
        return text.split()
