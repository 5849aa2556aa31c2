"""The grammar of bash scripts, as far as launch scripts use it: commands, with words as they are written.

Nothing is expanded and nothing is run here; shell_words.py says what words become. The grammar is that of
"Shell Grammar" and "Shell Syntax" in the manual of bash 5.2; `coproc` and extended globs are not read.
"""

import re
from bisect import bisect_right
from collections.abc import Callable

from megatron_cpt.config.errors import BadInput, Fault
from megatron_cpt.planning.shell_nodes import (
    DECLARATIONS,
    AndOr,
    Arithmetic,
    Assignment,
    Case,
    For,
    Function,
    Group,
    HereDocument,
    If,
    Node,
    Pipeline,
    Simple,
    Test,
    While,
    Word,
)

_ENDS_A_WORD = frozenset(" \t\r\n;&|<>()")
_ASSIGNED = re.compile(r"([A-Za-z_]\w*)(?:\[([^\]\n]*)\])?(\+?)=")
_REDIRECTION = re.compile(r"\d*(?:<<<|<<-?|<&|<>|<(?!\()|>>|>&|>\||>(?!\())|&>>?")
_CLOSES = frozenset({"then", "elif", "else", "fi", "do", "done", "esac", "}"})
_OPENED_BY = {"fi": "if", "done": "do", "esac": "case", "}": "{", "then": "if", "do": "for", ")": "("}


def parse(text: str, first_line: int = 1) -> list[Node]:
    """The commands of a script, a line's number being that of its file.

    Raises BadInput for a script that breaks off or that this grammar does not have.
    """
    parser = _Parser(text.replace("\r\n", "\n"), first_line)
    try:
        nodes = parser.commands()
    except RecursionError as error:
        raise BadInput(Fault("the script", "cannot be read: it is nested too deeply.", _REMEDY)) from error
    if parser.place < len(parser.text):
        raise parser.fault(f"`{parser.word() or parser.text[parser.place]}` is not expected there")
    return nodes


_REMEDY = "Give the argument list itself, after `--`."


def after(text: str, place: int, in_quotes: bool = False) -> int:
    """The place after what begins at `place`: a quote, `$(...)`, `${...}`, a backquote, an escape, or one character.

    Args:
        in_quotes: whether it stands in `"..."`, where an apostrophe is a letter.
    Raises:
        ValueError: it does not end.
    """
    mark = text[place]
    if mark == "\\":
        return min(place + 2, len(text))
    if text.startswith("$'", place) and not in_quotes:
        return _closing(text, place + 2, "'", escapes=True)
    if mark == "'" and not in_quotes:
        return _closing(text, place + 1, "'", escapes=False)
    if mark == "`":
        return _closing(text, place + 1, "`", escapes=True)
    if mark == '"':
        return _nested(text, place + 1, '"', "", "", in_quotes=True)
    if text.startswith(("$(", "<(", ">("), place):
        return _nested(text, place + 2, ")", "(", f"after `{text[place : place + 2]}`")
    if text.startswith("${", place):
        return _nested(text, place + 2, "}", "", "after `${`", in_quotes)
    return place + 1


def _closing(text: str, place: int, mark: str, escapes: bool) -> int:
    while place < len(text):
        if text[place] == mark:
            return place + 1
        place += 2 if escapes and text[place] == "\\" else 1
    raise ValueError("a quote is not closed")


def _nested(text: str, place: int, mark: str, opening: str, where: str, in_quotes: bool = False) -> int:
    """The place after `mark`, whatever is quoted or nested before it."""
    depth = 1
    while place < len(text):
        letter = text[place]
        if letter == mark:
            depth -= 1
            if not depth:
                return place + 1
            place += 1
        elif letter == opening:
            depth += 1
            place += 1
        else:
            place = after(text, place, in_quotes)
    raise ValueError("a quote is not closed" if mark == '"' else f"`{mark}` is missing {where}")


class _Parser:
    """Reads a script from left to right."""

    def __init__(self, text: str, first_line: int) -> None:
        self.text, self.place, self.first_line = text, 0, first_line
        self.ends = [place for place, letter in enumerate(text) if letter == "\n"]
        self.pending: list[tuple[str, bool, bool, list[HereDocument]]] = []

    @property
    def line(self) -> int:
        """The number of the line that is read."""
        return self.first_line + bisect_right(self.ends, self.place - 1)

    def fault(self, reason: str) -> BadInput:
        return BadInput(Fault(f"line {self.line} of the script", f"cannot be read: {reason}.", _REMEDY))

    # --- words

    def blanks(self) -> None:
        """Goes over blanks, continued lines and a comment."""
        while self.place < len(self.text):
            if self.text[self.place] in " \t\r":
                self.place += 1
            elif self.text.startswith("\\\n", self.place):
                self.place += 2
            elif self.text[self.place] == "#":
                end = self.text.find("\n", self.place)
                self.place = len(self.text) if end < 0 else end
            else:
                return

    def newlines(self, marks: str = "\n") -> None:
        """Goes over blanks and line ends, and over here-documents that begin after these."""
        self.blanks()
        while self.place < len(self.text) and self.text[self.place] in marks:
            if self.text.startswith((";;", ";&", "&&", "&>"), self.place):
                return
            is_line_end = self.text[self.place] == "\n"
            self.place += 1
            if is_line_end:
                self._read_documents()
            self.blanks()

    def word(self) -> str:
        """The word that follows, not taken; empty where an operator or the end follows."""
        place = self.place
        while place < len(self.text):
            if self.text.startswith(("<(", ">("), place) and place == self.place:
                pass  # a process that stands for a file
            elif self.text[place] in _ENDS_A_WORD:
                break
            try:
                place = after(self.text, place)
            except ValueError as error:
                raise self.fault(str(error)) from error
        return self.text[self.place : place]

    def take_word(self) -> Word:
        text, line = self.word(), self.line
        self.place += len(text)
        return Word(text, line)

    def take(self, *marks: str) -> str:
        """The first of the marks that stands here, taken; empty where none does."""
        self.blanks()
        found = next((mark for mark in marks if self.text.startswith(mark, self.place)), "")
        self.place += len(found)
        return found

    def need(self, name: str, opened_at: int) -> None:
        """Takes a reserved word. Raises BadInput where another thing stands."""
        self.newlines("\n;")
        if self.word() == name or (name in "()" and self.text.startswith(name, self.place)):
            self.place += len(name)
            return
        reason = f"has `{_OPENED_BY[name]}` without `{name}`"
        raise BadInput(Fault(f"line {opened_at} of the script", f"{reason}.", _REMEDY))

    def _read_documents(self) -> None:
        pending, self.pending = self.pending, []
        for name, strips, is_quoted, documents in pending:
            first, lines = self.line, []
            while self.place < len(self.text):
                end = self.text.find("\n", self.place)
                end = len(self.text) if end < 0 else end
                line = self.text[self.place : end]
                self.place = min(end + 1, len(self.text))
                line = line.lstrip("\t") if strips else line
                if line == name:
                    break
                lines.append(line)
            documents.append(HereDocument("\n".join([*lines, ""]), first, is_quoted))

    # --- commands

    def commands(self) -> list[Node]:
        """Commands to a word or sign that closes them."""
        found: list[Node] = []
        while True:
            self.newlines("\n;&")
            if self.place == len(self.text) or self.text[self.place] in ";)" or self.word() in _CLOSES:
                return found
            found.append(self._marked(self._and_or))

    def _marked(self, read: Callable[[], Node]) -> Node:
        start = self.place
        node = read()
        if not node.text:
            text = " ".join(self.text[start : self.place].replace("\\\n", " ").split())
            node.text = text if len(text) <= _LONGEST else f"{text[: _LONGEST - 3]}..."
        return node

    def _and_or(self) -> Node:
        line = self.line
        parts = [("", self._marked(self._pipeline))]
        while joint := self.take("&&", "||"):
            self.newlines()
            parts.append((joint, self._marked(self._pipeline)))
        return parts[0][1] if len(parts) == 1 else AndOr(line, parts)

    def _pipeline(self) -> Node:
        line, negated = self.line, False
        while (word := self.word()) in ("!", "time"):
            negated ^= word == "!"
            self.place += len(word)
            self.blanks()
        commands = [self._marked(self._command)]
        while not self.text.startswith("||", self.place) and self.take("|&", "|"):
            self.newlines()
            commands.append(self._marked(self._command))
            self.blanks()
        return commands[0] if len(commands) == 1 and not negated else Pipeline(line, negated, commands)

    def _command(self) -> Node:
        self.blanks()
        line, word = self.line, self.word()
        if self.text.startswith("((", self.place):
            return self._redirected(Arithmetic(line, self._double_parentheses()))
        if self.take("("):
            body = self.commands()
            self.need(")", line)
            return self._redirected(Group(line, body, isolated=True))
        readers = {
            "if": self._if,
            "for": self._for,
            "select": self._for,
            "while": self._while,
            "until": self._while,
            "case": self._case,
            "{": self._group,
            "[[": self._test,
            "function": self._function,
        }
        if word in readers:
            self.place += len(word)
            return self._redirected(readers[word](line, word))
        return self._simple(line)

    def _simple(self, line: int) -> Node:
        node = Simple(line, [], [], [])
        while True:
            self.blanks()
            if self._redirection(node.documents):
                continue
            word = self.word()
            if not word:
                break
            if word in _CLOSES and not node.words and not node.assignments:
                raise self.fault(f"`{word}` is not expected there")
            assigned = _ASSIGNED.match(word)
            if assigned and (not node.words or node.words[0].text in DECLARATIONS):
                node.assignments.append(self._assignment(assigned, word))
                continue
            node.words.append(self.take_word())
            if len(node.words) == 1 and (called := re.compile(r"[ \t]*\([ \t]*\)").match(self.text, self.place)):
                self.place = called.end()
                return Function(line, word, self._body(line))
        if not node.words and not node.assignments and self.text[self.place : self.place + 1] in ("(", "&", "|"):
            raise self.fault(f"`{self.text[self.place]}` is not expected there")
        return node

    def _assignment(self, found: re.Match[str], word: str) -> Assignment:
        line = self.line
        key = Word(found[2], line) if found[2] is not None else None
        self.place += found.end()
        if found.end() == len(word) and self.take("("):
            words = []
            while True:
                self.newlines()
                if self.take(")"):
                    break
                if not self.word():
                    raise self.fault(f"`)` is missing after `{word}(`")
                words.append(self.take_word())
            return Assignment(found[1], key, bool(found[3]), tuple(words))
        value = Word(word[found.end() :], line)
        self.place += len(value.text)
        return Assignment(found[1], key, bool(found[3]), value)

    def _redirection(self, documents: list[HereDocument]) -> bool:
        """Takes `>file` and the like; says whether one stood here."""
        found = _REDIRECTION.match(self.text, self.place)
        if found is None:
            return False
        self.place = found.end()
        self.blanks()
        target = self.take_word().text
        sign = found[0].lstrip("0123456789")
        if sign in ("<<", "<<-"):
            plain = re.sub(r"[\"'\\]", "", target)
            self.pending.append((plain, sign == "<<-", plain != target, documents))
        return True

    def _redirected(self, node: Node) -> Node:
        documents: list[HereDocument] = []
        self.blanks()
        while self._redirection(documents):
            self.blanks()
        return node

    def _if(self, line: int, _: str) -> Node:
        branches, otherwise = [], []
        word = "if"
        while word != "fi":
            if word == "else":
                otherwise = self.commands()
            else:
                condition = self.commands()
                self.need("then", line)
                branches.append((condition, self.commands()))
            word = self.word()
            if word not in ("elif", "else") or (word == "else" and otherwise):
                self.need("fi", line)
                break
            self.place += len(word)
        return If(line, branches, otherwise)

    def _for(self, line: int, word: str) -> Node:
        self.blanks()
        if self.text.startswith("((", self.place):
            parts = [*self._double_parentheses().split(";"), "", ""][:3]
            first, condition, each = (Arithmetic(line, part.strip()) for part in parts)
            condition.text = f"(({condition.expression}))"
            return While(line, False, [condition] if condition.expression else [], self._loop(line), first, each)
        name = self.take_word().text
        self.newlines()
        words = None
        if self.word() == "in":
            self.place += 2
            words = []
            self.blanks()
            while self.word():
                words.append(self.take_word())
                self.blanks()
        if word == "select":
            words = [Word("$(select)", line)]  # what a person chooses
        return For(line, name, words, self._loop(line))

    def _loop(self, line: int) -> list[Node]:
        self.newlines("\n;")
        if self.word() == "{":
            self.place += 1
            body = self.commands()
            self.need("}", line)
            return body
        self.need("do", line)
        body = self.commands()
        self.need("done", line)
        return body

    def _while(self, line: int, word: str) -> Node:
        condition = self.commands()
        return While(line, word == "until", condition, self._loop(line))

    def _case(self, line: int, _: str) -> Node:
        self.blanks()
        word = self.take_word()
        self.newlines()
        if self.word() != "in":
            raise self.fault("`case` has no `in`")
        self.place += 2
        branches = []
        while True:
            self.newlines()
            if self.word() == "esac":
                break
            self.take("(")
            patterns = []
            while True:
                self.blanks()
                patterns.append(self.take_word())
                if not self.take("|"):
                    break
            if not patterns[0].text:
                self.need("esac", line)
            self.need(")", line)
            branches.append((patterns, self.commands()))
            end = self.take(";;&", ";;", ";&")
            if end in (";;&", ";&"):
                raise self.fault(f"`{end}` leads into the next pattern, which is not followed")
            if not end:
                break
        self.need("esac", line)
        return Case(line, word, branches)

    def _group(self, line: int, _: str) -> Node:
        body = self.commands()
        self.need("}", line)
        return Group(line, body, isolated=False)

    def _function(self, line: int, _: str) -> Node:
        self.blanks()
        name = self.take_word().text
        if self.take("("):
            self.need(")", line)
        return Function(line, name, self._body(line))

    def _body(self, line: int) -> list[Node]:
        self.newlines()
        node = self._command()
        return node.body if isinstance(node, Group) and not node.isolated else [node]

    def _test(self, line: int, _: str) -> Node:
        """`[[ ... ]]`, where signs are words."""
        words: list[Word] = []
        while True:
            self.newlines()
            sign = "" if words and words[-1].text == "=~" else self.take("&&", "||", "(", ")", "<", ">")
            if sign:
                words.append(Word(sign, self.line))
                continue
            word = self.take_word()
            if word.text == "]]":
                return Test(line, words)
            if not word.text and (not words or words[-1].text != "=~" or self.place == len(self.text)):
                raise self.fault("`[[` without `]]`")
            if words and words[-1].text == "=~":
                end = re.compile(r"(?:\\.|[^\s\\])*").match(self.text, self.place)
                assert end is not None, "it matches nothing too"
                self.place = end.end()
                word = Word(word.text + end[0], word.line)
            words.append(word)

    def _double_parentheses(self) -> str:
        """What stands in `(( ))`, taken."""
        start = self.place
        try:
            self.place = _nested(self.text, start + 1, ")", "(", "after `((`")
        except ValueError as error:
            raise self.fault(str(error)) from error
        return self.text[start + 2 : self.place - 2] if self.text[self.place - 2] == ")" else ""


_LONGEST = 60
"""Characters of a command in a message."""
