"""Follows a bash script from command to command without running any, and finds the calls of a training program.

Where the way depends on a program or a file, one way is taken: the one that does not end the script, or the one with
the call, or that of a condition that does not hold. A note names the line and what was assumed.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise

from megatron_cpt.config.errors import BadInput, Fault
from megatron_cpt.planning.shell_nodes import (
    CALL,
    CHANGE,
    DECLARATIONS,
    NO_LAUNCHER,
    PROGRAM,
    AndOr,
    Arithmetic,
    Assignment,
    Case,
    For,
    Function,
    Group,
    If,
    Node,
    Pipeline,
    Simple,
    Test,
    While,
    Word,
    asks,
    assigned_names,
    ends,
    has_call,
)
from megatron_cpt.planning.shell_syntax import parse
from megatron_cpt.planning.shell_tests import holds, holds_in_brackets
from megatron_cpt.planning.shell_values import Gap, Kept, Variables, pattern_regex, plain
from megatron_cpt.planning.shell_words import Words

_SHELLS = frozenset({"bash", "sh", "dash", "zsh", "ksh"})
_RUNS_TEXT = re.compile(r"-[a-z]*c")
_OPTION = re.compile(r"--[\w-]+=")
_SUCCEEDS = re.compile(
    r"echo|printf|cd|pushd|popd|mkdir|set|shopt|ulimit|source|\.|module|:|true|sleep|wait|trap|conda|cat|touch|shift|"
    r"unset|let|tee|umask|alias"
)
"""Commands of which nobody asks whether they succeed."""
_REMEDY = "Give the argument list itself, after `--`."
_MOST_TURNS = 1000
"""Turns of a loop."""
_MOST_COMMANDS = 100_000
_DEEPEST = 50
"""Functions in functions, and scripts in texts."""


@dataclass(frozen=True)
class Call:
    """A command that starts the training program."""

    line: int
    words: tuple[str, ...]
    gaps: frozenset[Gap]
    """Of its words, also of those that are empty and vanish."""


class _Leave(Exception):
    """`exit`, `return`, `break` or `continue`."""

    def __init__(self, word: str, depth: int, node: Node, status: bool | None = True) -> None:
        self.word, self.depth, self.node, self.status = word, depth, node, status


class Script:
    """A script that is followed from its first command on."""

    def __init__(self, name: str, parameters: Sequence[str]) -> None:
        self.words = Words(Variables(name, parameters=list(parameters)))
        self.calls: list[Call] = []
        self.notes: list[str] = []
        """What was left out or assumed, a sentence each."""
        self.empty: set[Gap] = set()
        """Variables that are not set and by which a condition was decided."""
        self.ended: str = ""
        """Where the script ends before its last line."""
        self.others: list[str] = []
        """Scripts that this one starts, with their lines."""
        self._functions: dict[str, list[Node]] = {}
        self._locals: list[dict[str, Kept]] = []
        self._tested: set[Gap] = set()
        self._commands = self._depth = 0

    @property
    def variables(self) -> Variables:
        """What is set."""
        return self.words.variables

    def follow(self, text: str) -> None:
        """Follows a text to its end. Raises BadInput for one that cannot be read, or that never ends."""
        try:
            self._run(parse(text))
        except RecursionError as error:
            raise BadInput(Fault("the script", "is nested too deeply to follow.", _REMEDY)) from error
        except _Leave as leave:
            if leave.word in ("exit", "return"):
                self.ended = f"line {leave.node.line}: `{leave.node.text}` ends it"

    def note(self, sentence: str) -> None:
        """Keeps a note once."""
        if sentence not in self.notes:
            self.notes.append(sentence)

    # --- commands

    def _run(self, nodes: Sequence[Node]) -> bool | None:
        """Follows commands; whether the last one succeeds, None where that is not known."""
        status: bool | None = True
        for node in nodes:
            self._commands += 1
            if self._commands > _MOST_COMMANDS:
                rule = f"leads to more than {_MOST_COMMANDS:,} commands."
                raise BadInput(Fault(f"line {node.line} of the script", rule, _REMEDY))
            status = self._follow(node)
        return status

    def _follow(self, node: Node) -> bool | None:
        match node:
            case Simple():
                return self._simple(node)
            case Test(words=words):
                return self._told(lambda: holds_in_brackets(words, self.words))
            case Arithmetic():
                return self._told(lambda: self._arithmetic(node))
            case If():
                return self._if(node)
            case AndOr():
                return self._and_or(node)
            case Pipeline():
                return self._pipeline(node)
            case For():
                return self._for(node)
            case While():
                return self._while(node)
            case Case():
                return self._case(node)
            case Group(body=body, isolated=isolated):
                return self._inner(lambda: self._run(body)) if isolated else self._run(body)
            case Function(name=name, body=body):
                self._functions[name] = body
        return True

    def _told(self, decide: Callable[[], bool | None]) -> bool | None:
        """The value of a test; what it took as empty is kept."""
        self.words.seen = set()
        found = decide()
        self._tested |= {gap for gap in self.words.seen if gap.kind in ("unset", "hidden")}
        return found

    def _inner(self, run: Callable[[], bool | None]) -> bool | None:
        """Follows what a subshell does; its variables are forgotten."""
        kept = self.variables
        self.words.variables = kept.copied()
        try:
            return run()
        except _Leave as leave:
            return leave.status
        finally:
            self.words.variables = kept

    def _pipeline(self, node: Pipeline) -> bool | None:
        status: bool | None = True
        for command in node.commands:
            alone = len(node.commands) == 1
            status = self._follow(command) if alone else self._inner(partial(self._follow, command))
        return status if not node.negated or status is None else not status

    # --- conditions

    def _if(self, node: If) -> bool | None:
        for number, (condition, body) in enumerate(node.branches):
            rest = [part for one, two in node.branches[number + 1 :] for part in (*one, *two)] + node.otherwise
            if self._decided(condition, body, rest):
                return self._run(body)
        return self._run(node.otherwise)

    def _decided(self, condition: Sequence[Node], held: Sequence[Node], not_held: Sequence[Node]) -> bool:
        """Whether a condition holds, or is assumed to."""
        self._tested = set()
        status = self._run(condition)
        if status is None:
            return self._assumed(condition[-1], held, not_held, usual=False)
        self._take_tested([*held, *not_held])
        return status

    def _and_or(self, node: AndOr) -> bool | None:
        (_, first), *others = node.parts
        self._tested = set()
        status = self._follow(first)
        last = first
        for joint, part in others:
            if status is None:
                held, not_held = ([part], []) if joint == "&&" else ([], [part])
                status = self._assumed(last, held, not_held, usual=not asks(last))
            else:
                self._take_tested([part])
            if status is (joint == "&&"):
                self._tested = set()
                status, last = self._follow(part), part
        return status

    def _take_tested(self, nodes: Sequence[Node]) -> None:
        if self._matters(nodes):
            self.empty |= self._tested

    def _assumed(self, node: Node, held: Sequence[Node], not_held: Sequence[Node], usual: bool) -> bool:
        """What is assumed of a condition that cannot be known, with a note where arguments may depend on it."""
        if ends(held, self._functions) != ends(not_held, self._functions):
            found = ends(not_held, self._functions)
        elif has_call(held, self._functions) != has_call(not_held, self._functions):
            found = has_call(held, self._functions)
        else:
            found = usual
        names = ", ".join(dict.fromkeys(assigned_names(not_held if found else held, self._functions)))
        if self._matters([*held, *not_held]) and not (usual and found and not names):
            otherwise = f"; otherwise it would set {names}" if names else ""
            self.note(
                f"line {node.line}: `{node.text}` cannot be evaluated here, and was taken as "
                f"{'true' if found else 'false'}{otherwise}"
            )
        return found

    def _matters(self, nodes: Sequence[Node]) -> bool:
        """Whether arguments may depend on commands."""
        return has_call(nodes, self._functions) or any(True for _ in assigned_names(nodes, self._functions))

    # --- loops

    def _for(self, node: For) -> bool | None:
        self.words.seen = set()
        words = self.variables.parameters if node.words is None else self.words.fields(node.words)
        reason = next((f"`{gap.text}` {gap.why}" for word in words for gap in self.words.unknown(word)), "")
        is_glob = any(set("*?[") & set(word.text) for word in node.words or [] if word.text[:1] not in "'\"")
        if is_glob and any(set("*?[") & set(word) for word in words):
            reason = "no file is looked at"
        if not reason and len(words) > _MOST_TURNS:
            reason = f"it has more than {_MOST_TURNS} turns"
        if reason:
            return self._not_followed(node, node.body, reason, [node.name])
        if not words:
            self.empty |= {gap for gap in self.words.seen if gap.kind == "unset" and self._matters(node.body)}
        status: bool | None = True
        for word in words:
            self.variables.set(node.name, word)
            status, goes_on = self._turn(node.body)
            if not goes_on:
                break
        return status

    def _while(self, node: While) -> bool | None:
        if node.first is not None:
            self._follow(node.first)
        calls = len(self.calls)
        for _ in range(_MOST_TURNS):
            self._tested = set()
            status = self._run(node.condition)
            if status is None:
                return self._not_followed(node, node.body, "its condition cannot be evaluated here", [])
            self._take_tested(node.body)
            if status is node.until:
                return True
            status, goes_on = self._turn(node.body)
            if not goes_on or len(self.calls) > calls:
                return status
            if node.each is not None:
                self._follow(node.each)
        return self._not_followed(node, node.body, f"it has more than {_MOST_TURNS} turns", [])

    def _turn(self, body: Sequence[Node]) -> tuple[bool | None, bool]:
        """Follows a turn of a loop: its status, and whether there is another."""
        try:
            return self._run(body), True
        except _Leave as leave:
            if leave.word not in ("break", "continue"):
                raise
            if leave.depth > 1:
                raise _Leave(leave.word, leave.depth - 1, leave.node) from leave
            return leave.status, leave.word == "continue"

    def _not_followed(self, node: Node, body: Sequence[Node], reason: str, own: Sequence[str]) -> bool | None:
        """What a loop sets is not known. One with a call is followed once."""
        names = dict.fromkeys([*own, *assigned_names(body, self._functions)])
        why = f"is set in the loop of line {node.line}, which cannot be unrolled: {reason}"
        for name in filter(str.isidentifier, names):
            self.variables.unset(name)
            self.variables.set(name, self.words.mark(Gap("unknown", f"${name}", node.line, why)))
        if has_call(body, self._functions):
            self.note(f"line {node.line}: `{node.text}` was followed once: {reason}")
            self._turn(body)
        elif names:
            said = ", ".join(f"${name}" if name.isidentifier() else name for name in names)
            self.note(f"line {node.line}: the loop `{node.text}` was not followed: {reason}; not known: {said}")
        return None

    def _case(self, node: Case) -> bool | None:
        self.words.seen = set()
        text = self.words.text(node.word)
        tested = {gap for gap in self.words.seen if gap.kind in ("unset", "hidden")}
        bodies = [part for _, body in node.branches for part in body]
        if self.words.unknown(text):
            usual = next((body for patterns, body in node.branches if patterns[0].text == "*"), [])
            taken = [] if ends(usual, self._functions) else usual
            if self._matters(bodies):
                self.note(
                    f"line {node.line}: `case {node.word.text}` cannot be evaluated here, and was taken as "
                    f"{'`*`' if taken else 'none of its patterns'}"
                )
            return self._run(taken)
        if self._matters(bodies):
            self.empty |= tested
        for patterns, body in node.branches:
            for pattern in patterns:
                expected = pattern_regex(plain(self.words.text(pattern, as_pattern=True)))
                if re.fullmatch(expected, plain(text), re.DOTALL):
                    return self._run(body)
        return True

    # --- variables

    def _assign(self, assignment: Assignment) -> None:
        name, key, value = assignment.name, assignment.key, assignment.value
        arrays, texts = self.variables.arrays, self.variables.texts
        if not isinstance(value, Word):
            elements = dict(arrays.get(name, {"0": texts[name]} if name in texts else {})) if assignment.adds else {}
            for word in value:
                if named := re.match(r"\[([^\]]+)\]=", word.text):
                    place = self.words.key_of(name, Word(named[1], word.line))
                    elements[place] = self.words.text(Word(word.text[named.end() :], word.line))
                    continue
                for text in self.words.elements([word]):
                    elements[str(max([-1, *(int(each) for each in elements if each.isdecimal())]) + 1)] = text
            texts.pop(name, None)
            arrays[name] = elements
            return
        text = self.words.without(name, self.words.text(value))
        if key is not None:
            elements = arrays.setdefault(name, {"0": texts.pop(name)} if name in texts else {})
            place = self.words.key_of(name, key)
            elements[place] = elements.get(place, "") + text if assignment.adds else text
            return
        if assignment.adds:
            text = (arrays.get(name, {}).get("0", "") if name in arrays else texts.get(name, "")) + text
        self.variables.set(name, text)

    def _arithmetic(self, node: Arithmetic) -> bool | None:
        """Changes what `((i++))` or `((n += 2))` change; whether the value is not 0."""
        expression, line = node.expression.strip(), node.line
        change = CHANGE.fullmatch(expression)
        if change is None:
            value = self.words.arithmetic(expression, f"(({expression}))", line) if expression else "1"
            return None if self.words.unknown(value) else plain(value) != "0"
        name, sign = change[2] or change[3], change[1] or change[4]
        old = f"({name})" if name in self.variables.texts else "(0)"
        if sign in ("++", "--"):
            asked = f"{old} {sign[0]} 1"
        else:
            operator = sign.partition("=")[0]
            asked = f"{old} {operator} ({change[5]})" if operator else change[5]
        value = self.words.arithmetic(asked, f"(({expression}))", line)
        self.variables.set(name, value)
        return None if self.words.unknown(value) else plain(value) != "0"

    # --- simple commands

    def _simple(self, node: Simple) -> bool | None:
        if not node.words or node.words[0].text in DECLARATIONS:
            self._declare(node)
            return True
        self.words.seen = set()
        words = self.words.fields(node.words)
        gaps = frozenset(self.words.seen)
        if not words:
            return True
        kept = {assignment.name: self.variables.kept(assignment.name) for assignment in node.assignments}
        exported = set(self.variables.exported)
        for assignment in node.assignments:
            self._assign(assignment)
            self.variables.exported.add(assignment.name)
        try:
            return self._command(node, words, gaps)
        finally:
            self.variables.restore(kept)
            if kept:
                self.variables.exported = exported

    def _command(self, node: Simple, words: Sequence[str], gaps: frozenset[Gap]) -> bool | None:
        """Follows a command with words."""
        calls = len(self.calls)
        self._texts(node, words)
        if len(self.calls) > calls:
            return True
        if words[0] in self._functions:
            return self._called(node, words)
        handlers: dict[str, Callable[[Simple, Sequence[str]], bool | None]] = {
            **dict.fromkeys(("[", "test"), self._test),
            **dict.fromkeys(("exit", "return", "break", "continue"), self._leave),
            **dict.fromkeys(("read", "mapfile", "readarray", "getopts", "printf"), self._read),
            **dict.fromkeys(("source", "."), self._source),
            **dict.fromkeys(("set", "shift", "unset"), self._change_variables),
            "eval": lambda node, words: self._text(" ".join(words[1:]), node.line),
            "let": lambda node, words: (
                [self._arithmetic(Arithmetic(node.line, word)) for word in words[1:]][-1:] == [1]
            ),
            "false": lambda node, words: False,
        }
        if words[0] in handlers:
            self._tested |= {gap for gap in gaps if gap.kind in ("unset", "hidden")}
            return handlers[words[0]](node, words)
        if not NO_LAUNCHER.fullmatch(words[0]) and any(PROGRAM.fullmatch(word) for word in words[:-1]):
            self.calls.append(Call(node.line, tuple(words), gaps))
            return True
        if words[0].startswith("--"):
            self.note(f"line {node.line}: `{node.text}` belongs to no command, for the line before does not go on")
        for word in words[:2]:
            if word.endswith(".sh") and words[0] in (*_SHELLS, "sbatch", "srun", "exec", word):
                self.others.append(f"{word} (line {node.line})")
        return True if _SUCCEEDS.fullmatch(words[0]) else None

    # --- texts that are scripts, and functions

    def _texts(self, node: Simple, words: Sequence[str]) -> None:
        """Follows what a command has a shell run: `bash -c TEXT`, `ssh HOST TEXT`, lines that it reads."""
        direct = any(PROGRAM.fullmatch(word) for word in words[:-1])
        for place, word in enumerate(words):
            shells = [each for each in words[:place] if each.rpartition("/")[2] in _SHELLS]
            if shells and _RUNS_TEXT.fullmatch(words[place - 1]):
                self._shell(word, node.line, words[place + 1 :])
                return
            is_own = words[0] == "eval" or words[0] in self._functions
            if place and not direct and not is_own and CALL.search(word) and not NO_LAUNCHER.fullmatch(words[0]):
                self._shell(_OPTION.sub("", word, count=1) if _OPTION.match(word) else word, node.line, [])
                return
        for document in node.documents:
            text = document.text if document.is_quoted else self.words.document(document.text, document.line)
            if CALL.search(text):
                self._shell(text, document.line, [])

    def _shell(self, text: str, line: int, words: Sequence[str]) -> None:
        """Follows a script of a shell of its own, which has what is exported, and words from `$0` on."""
        kept = self.variables
        self.words.variables = kept.inherited(words)
        try:
            self._text(text, line)
        except _Leave:
            pass
        finally:
            self.words.variables = kept

    def _text(self, text: str, line: int) -> bool | None:
        """Follows a script that is a text. One that cannot be read is left out, unless it has the call."""
        try:
            nodes = parse(text, line)
        except BadInput:
            if CALL.search(text):
                raise
            return None
        return self._deeper(lambda: self._run(nodes), line)

    def _deeper(self, run: Callable[[], bool | None], line: int) -> bool | None:
        """Raises BadInput where functions and texts lead into one another without end."""
        self._depth += 1
        if self._depth > _DEEPEST:
            raise BadInput(Fault(f"line {line} of the script", "leads back to itself.", _REMEDY))
        try:
            return run()
        finally:
            self._depth -= 1

    def _called(self, node: Simple, words: Sequence[str]) -> bool | None:
        """Follows a function, with its parameters and its local variables."""
        variables = self.variables
        kept = variables.parameters, variables.of_function
        variables.parameters, variables.of_function = list(words[1:]), True
        self._locals.append({})
        try:
            return self._deeper(lambda: self._run(self._functions[words[0]]), node.line)
        except _Leave as leave:
            if leave.word != "return":
                raise
            return leave.status
        finally:
            self.variables.restore(self._locals.pop())
            variables.parameters, variables.of_function = kept

    # --- commands of the shell itself

    def _declare(self, node: Simple) -> None:
        """Assignments, alone or after `export`, `local` and the like."""
        words = self.words.fields(node.words)
        options = "".join(word[1:] for word in words[1:] if word.startswith("-"))
        names = [word for word in words[1:] if not word.startswith(("-", "+"))]
        told = [*(word.partition("=")[0] for word in names), *(assignment.name for assignment in node.assignments)]
        if words and self._locals and words[0] in ("local", "declare", "typeset") and "g" not in options:
            for name in told:
                self._locals[-1].setdefault(name, self.variables.kept(name))
        for word in names:
            name, equals, value = word.partition("=")
            if equals:
                self.variables.set(name, value)
            elif words[0] == "local":
                self.variables.unset(name)
                self.variables.set(name, "")
        for assignment in node.assignments:
            self._assign(assignment)
        if self.variables.exports_all or words[:1] == ["export"] or "x" in options:
            self.variables.exported |= set(told)

    def _test(self, node: Simple, words: Sequence[str]) -> bool | None:
        return holds(words[1:-1] if words[0] == "[" else words[1:], self.words)

    def _leave(self, node: Simple, words: Sequence[str]) -> bool | None:
        number = words[1] if len(words) > 1 else "0"
        if words[0] in ("break", "continue"):
            raise _Leave(words[0], int(number) if number.isdecimal() and number != "0" else 1, node)
        raise _Leave(words[0], 1, node, None if self.words.unknown(number) else plain(number) == "0")

    def _read(self, node: Simple, words: Sequence[str]) -> bool | None:
        """What these put into variables is not known."""
        names = [word for word in words[1:] if word.isidentifier()]
        if words[0] == "getopts":
            if not self.variables.parameters:
                return False
            names = [*words[2:3], "OPTARG", "OPTIND"]
        if words[0] == "printf":
            names = [word for option, word in pairwise(words) if option == "-v"]
        for name in names:
            self.variables.unset(name)
            why = f"is set by `{words[0]}`, which is not run"
            self.variables.set(name, self.words.mark(Gap("unknown", f"${name}", node.line, why)))
        return True if words[0] == "printf" else None

    def _source(self, node: Simple, words: Sequence[str]) -> bool | None:
        self.note(f"line {node.line}: not read: {self.words.shown(' '.join(words[1:]))}, which the script reads")
        return True

    def _change_variables(self, node: Simple, words: Sequence[str]) -> bool | None:
        if words[0] == "unset":
            for name in words[1:]:
                self.variables.unset(name)
        elif words[0] == "shift":
            number = int(words[1]) if len(words) > 1 and words[1].isdecimal() else 1
            if number > len(self.variables.parameters):
                return False
            self.variables.parameters = self.variables.parameters[number:]
        else:
            for place, word in enumerate(words[1:], start=1):
                if word == "--":
                    self.variables.parameters = list(words[place + 1 :])
                    break
                if re.fullmatch(r"[-+][a-z]*a[a-z]*", word) or word == "allexport":
                    self.variables.exports_all = not word.startswith("+")
        return True
