"""What words of a bash script become: variables, arrays, arithmetic, braces and quotes, without running anything.

What cannot be known stays in a text as a mark, so that whoever uses the text sees it:

- a variable or parameter that is not set: empty, as in a shell;
- `$(...)`, and what is not understood: unknown.

The rules are those of "Shell Expansions" in the manual of bash 5.2.
"""

import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Literal

from megatron_cpt.config.errors import BadInput, Fault
from megatron_cpt.planning.shell_nodes import AndOr, Simple, Word
from megatron_cpt.planning.shell_syntax import after, parse
from megatron_cpt.planning.shell_values import (
    MARK,
    NULL,
    Gap,
    Variables,
    pattern_regex,
    plain,
    replacement,
    whole_number,
)

_LONGEST = 1 << 20
"""Characters of a value. Scripts that make longer ones by doubling are not read."""
_UNCLEAR = "is not understood"
_MOST_WORDS = 10_000
"""Words of `{1..N}` and `$(seq N)`."""
_NAME = re.compile(r"[A-Za-z_]\w*")
_PARAMETER = re.compile(r"([A-Za-z_]\w*|\d+|[@*#?$!-])(?:\[((?:[^\[\]]|\[[^\]]*\])*)\])?", re.DOTALL)
_BRACES = re.compile(r"\{(?:(-?\d+)\.\.(-?\d+)(?:\.\.(-?\d+))?|([^{}\s\"'$`\\]*,[^{}\s\"'$`\\]*))\}")
_ESCAPES = {"n": "\n", "t": "\t", "r": "\r", "\\": "\\", "'": "'", '"': '"'}


class Words:
    """Expands words. `variables` may be replaced; `gaps` are those of all marks that were ever made."""

    def __init__(self, variables: Variables) -> None:
        self.variables = variables
        self.gaps: list[Gap] = []
        self.seen: set[Gap] = set()
        """Gaps that words had since it was last emptied, also those of words that vanished."""
        self._line = 0

    # --- marks

    def mark(self, gap: Gap) -> str:
        """The mark of a gap."""
        if gap not in self.gaps:
            self.gaps.append(gap)
        self.seen.add(gap)
        return f"\x02{self.gaps.index(gap)}\x03"

    def gaps_of(self, text: str) -> list[Gap]:
        """Those whose marks a text has."""
        return [self.gaps[int(number)] for number in MARK.findall(text)]

    def unknown(self, text: str) -> list[Gap]:
        """Those that are not empty."""
        return [gap for gap in self.gaps_of(text) if gap.kind == "unknown"]

    def without(self, name: str, text: str) -> str:
        """A text without the marks of a variable that is not set: in `X="$X more"` that is no omission."""

        def kept(found: re.Match[str]) -> str:
            gap = self.gaps[int(found[1])]
            return "" if (gap.kind, gap.text) == ("unset", name) else found[0]

        return MARK.sub(kept, text)

    def shown(self, text: str) -> str:
        """A text with its gaps as they are written; those that are empty are left out."""

        def written(found: re.Match[str]) -> str:
            gap = self.gaps[int(found[1])]
            return gap.text if gap.kind == "unknown" else ""

        return MARK.sub(written, text).replace(NULL, "")

    # --- words

    def fields(self, words: Sequence[Word]) -> list[str]:
        """What words of a command become, as a shell divides them. Empty ones that no quote keeps vanish."""
        found = self.elements(words)
        self.seen.update(gap for text in found for gap in self.gaps_of(text))
        return [text.replace(NULL, "") for text in found if NULL in text or self.shown(text)]

    def document(self, text: str, line: int) -> str:
        """What the lines of a here-document become. One with a `$(` that does not end stays as it is."""
        self._line = line
        try:
            return "".join(" ".join(values).replace(NULL, "") for values, *_ in self._in_quotes(text))
        except ValueError:
            return text

    def elements(self, words: Sequence[Word]) -> list[str]:
        """Likewise, with marks in place of words that vanish: elements of an array."""
        found: list[str] = []
        for word in words:
            for one in _braced(word.text):
                found += self._divided(Word(one, word.line))
                if len(found) > _MOST_WORDS:
                    raise _too_long(word.line)
        return found

    def text(self, word: Word, as_pattern: bool = False) -> str:
        """What a word becomes where it is not divided: a value, a side of `[[ a = b ]]`.

        Args:
            as_pattern: quoted letters that mean something in a pattern get a backslash.
        """
        self._line = word.line
        parts = []
        for values, is_quoted, _ in self._pieces(word.text):
            joined = " ".join(values).replace(NULL, "")
            parts.append(re.sub(r"([\\*?\[])", r"\\\1", joined) if as_pattern and is_quoted else joined)
        found = "".join(parts)
        if len(found) > _LONGEST:
            raise _too_long(word.line)
        return found

    def _divided(self, word: Word) -> list[str]:
        self._line = word.line
        found: list[str] = []
        current: str | None = None
        marks = self.variables.texts.get("IFS", " \t\n") or "\x00"

        def push() -> None:
            nonlocal current
            if current is not None:
                found.append(current)
            current = None

        for values, is_quoted, is_divided in self._pieces(word.text):
            for number, value in enumerate(values):
                if number:
                    push()
                if not is_divided:
                    empty = is_quoted and not self.shown(value)
                    current = (current or "") + (value + NULL if empty else value)
                    continue
                if value[:1] in tuple(marks) and marks.isspace():
                    push()
                parts = re.split(f"[{re.escape(marks)}]", value.replace(NULL, ""))
                parts = [part for part in parts if part] if marks.isspace() else parts[: -1 if not parts[-1] else None]
                for place, part in enumerate(parts):
                    if place:
                        push()
                    current = (current or "") + (part or NULL)
                if value[-1:] in tuple(marks):
                    push()
        push()
        if sum(map(len, found)) > _LONGEST:
            raise _too_long(word.line)
        return found

    def _pieces(self, text: str) -> Iterator[tuple[list[str], bool, bool]]:
        """Parts of a word: texts (several for an array), whether they are quoted, whether blanks divide them."""
        place = 0
        if text == "~" or text.startswith("~/"):
            yield [os.path.expanduser("~")], True, False
            place = 1
        while place < len(text):
            end = after(text, place)
            letter = text[place]
            if text.startswith("$'", place):
                inner = text[place + 2 : end - 1]
                yield [re.sub(r"\\(.)", lambda found: _ESCAPES.get(found[1], found[0]), inner)], True, False
            elif letter == "'":
                yield [text[place + 1 : end - 1]], True, False
            elif letter == '"' or text.startswith('$"', place):
                place += letter == "$"
                end = after(text, place)
                yield from self._in_quotes(text[place + 1 : end - 1])
            elif letter == "\\":
                if text[place + 1 : end] != "\n":
                    yield [text[place + 1 : end]], True, False
            elif text.startswith("${", place) and (word := self._alternative(text[place + 2 : end - 1])) is not None:
                yield from ((values, is_quoted, not is_quoted) for values, is_quoted, _ in self._pieces(word))
            elif letter in "$`" or text.startswith(("<(", ">("), place):
                end = self._end_of_name(text, place, end)
                yield self._dollar(text[place:end]), False, True
            else:
                while end < len(text) and text[end] not in "\\'\"$`":
                    end += 1
                yield [text[place:end]], False, False
            place = end

    def _in_quotes(self, text: str) -> Iterator[tuple[list[str], bool, bool]]:
        """Parts of what stands in `"..."`."""
        place = 0
        if not text:
            yield [""], True, False
        while place < len(text):
            end = after(text, place, in_quotes=True) if text[place] in "$`\\" else place + 1
            if text[place] == "\\":
                kept = text[place + 1 : end]
                yield ["" if kept == "\n" else kept if kept in '$`"\\' else f"\\{kept}"], True, False
            elif text[place] in "$`":
                end = self._end_of_name(text, place, end)
                yield self._dollar(text[place:end]), True, False
            else:
                while end < len(text) and text[end] not in "$`\\":
                    end += 1
                yield [text[place:end]], True, False
            place = end

    def _end_of_name(self, text: str, place: int, end: int) -> int:
        """The end of `$NAME`."""
        if text.startswith("$", place) and end == place + 1:
            if text.startswith("[", end):
                closing = text.find("]", end)
                return closing + 1 if closing > 0 else end
            name = re.compile(r"[A-Za-z_]\w*|[0-9@*#?$!-]").match(text, end)
            return name.end() if name else end
        return end

    # --- what a dollar begins

    def _dollar(self, text: str) -> list[str]:
        """What `$NAME`, `${...}`, `$(...)`, `$((...))` and backquotes become; several texts for an array."""
        if text == "$":
            return ["$"]
        if text.startswith("$((") and text.endswith("))"):
            return [self.arithmetic(text[3:-2], text, self._line)]
        if text.startswith("$["):
            return [self.arithmetic(text[2:-1], text, self._line)]
        if text.startswith("$("):
            return [self._command(text[2:-1], text)]
        if text.startswith("`"):
            return [self._command(text[1:-1].replace("\\`", "`"), text)]
        if text.startswith(("<(", ">(")):
            return [self._unknown(text, "is not run")]
        if text.startswith("${"):
            return self._parameter(text[2:-1], text)
        return self._found(text[1:], None, text) or []

    def _unknown(self, text: str, why: str) -> str:
        return self.mark(Gap("unknown", " ".join(text.split()), self._line, why))

    def _found(self, name: str, key: str | None, text: str) -> list[str] | None:
        """The values of a variable: several for an array; a gap for one that is not set; None for no parameters."""
        known = self._value(name, key)
        if known is not None:
            for value in known:
                self.seen |= set(self.gaps_of(value))
            return known or None
        if name.isdecimal():
            return [""] if self.variables.of_function else [self.mark(Gap("parameter", name, self._line))]
        if name in ("RANDOM", "SECONDS", "PPID", "?", "$", "!", "-", "BASHPID", "SRANDOM", "EPOCHSECONDS"):
            return [self._unknown(text, "is known only when the script runs")]
        kind: Literal["hidden", "unset"] = "hidden" if name in self.variables.hidden else "unset"
        mark = self.mark(Gap(kind, name, self._line))
        return [] if key == "@" else [mark]

    def _value(self, name: str, key: str | None) -> list[str] | None:
        """The values of what is set; None for what is not."""
        variables = self.variables
        if name == "#":
            return [str(len(variables.parameters))]
        if name in ("@", "*"):
            return variables.parameters if name == "@" else [self._between().join(variables.parameters)]
        if name.isdecimal():
            number = int(name)
            given = [variables.name, *variables.parameters]
            return [given[number]] if number < len(given) else None
        if name == "BASH_SOURCE":
            return [variables.name]
        if name in variables.arrays:
            elements = variables.arrays[name]
            if key in ("@", "*"):
                values = _in_order(elements)
                return [self._between().join(values)] if key == "*" else values
            found = elements.get(self._key(name, key or "0"))
            return None if found is None else [found]
        if name in variables.texts and key in (None, "0", "@", "*"):
            return [variables.texts[name]]
        if key in ("@", "*") and name not in variables.texts:
            return None
        special = {"PWD": os.curdir, "HOME": os.path.expanduser("~")}
        return [special[name]] if name in special else None

    def _between(self) -> str:
        """What stands between the elements of `"$*"`."""
        return self.variables.texts.get("IFS", " ")[:1]

    def _key(self, name: str, key: str) -> str:
        """The subscript of an element as it is kept."""
        text, elements = plain(self.text(Word(key, self._line))), self.variables.arrays.get(name, {})
        if text in elements:
            return text
        try:
            number = whole_number(text, self.variables)
        except ValueError:
            return text
        return str(number if number >= 0 else 1 + number + max(map(int, filter(str.isdecimal, elements)), default=-1))

    def key_of(self, name: str, key: Word) -> str:
        """The subscript of an element that is assigned."""
        self._line = key.line
        return self._key(name, key.text)

    def _command(self, inner: str, text: str) -> str:
        """What a command would print, for those that only put words together."""
        try:
            nodes = parse(inner, self._line)
        except BadInput:
            return self._unknown(text, "is not run")
        if [type(node) for node in nodes] == [AndOr] and isinstance(nodes[0], AndOr):
            # $(cd FOLDER && pwd)
            parts = [part for _, part in nodes[0].parts]
            if all(isinstance(part, Simple) for part in parts) and len(parts) == 2:
                first, second = (self._plain_words(part) for part in parts)
                if first[:1] == ["cd"] and second[:1] == ["pwd"] and first[1:]:
                    return first[-1]
        if len(nodes) != 1:
            return self._unknown(text, "is not run")
        line = self._line
        words = self._plain_words(nodes[0])
        self._line = line
        match words:
            case ["pwd"]:
                return os.curdir
            case ["echo", *told] if not any(word.startswith("-") or "\\" in word for word in told):
                return " ".join(told)
            case ["dirname", *_, path]:
                return os.path.dirname(path) or os.curdir
            case ["basename", path]:
                return os.path.basename(path.rstrip("/"))
            case ["basename", path, suffix]:
                return os.path.basename(path.rstrip("/")).removesuffix(suffix)
            case ["seq", *numbers] if len(numbers) in (1, 2, 3) and all(map(_is_whole, numbers)):
                start, *step, end = map(int, numbers if len(numbers) > 1 else ["1", *numbers])
                counted = _counted(start, end, step[0] if step else 1)
                return "\n".join(counted) if counted is not None else self._unknown(text, "is not run")
        return self._unknown(text, "is not run")

    def _plain_words(self, node: object) -> list[str]:
        """The words of a command alone."""
        if not isinstance(node, Simple) or node.assignments or node.documents:
            return []
        return self.fields(node.words)

    # --- ${...}

    def _parameter(self, inner: str, text: str) -> list[str]:
        if (named := re.fullmatch(r"!([A-Za-z_]\w*)", inner)) and (name := self.variables.texts.get(named[1])):
            return self._found(name, None, text) or [] if _NAME.fullmatch(name) else [self._unknown(text, _UNCLEAR)]
        if (keys := re.fullmatch(r"!([A-Za-z_]\w*)\[[@*]\]", inner)) and keys[1] in self.variables.arrays:
            return list(self.variables.arrays[keys[1]])
        length = inner.startswith("#") and inner not in ("#",) and not inner.startswith(("#:", "#-", "#%", "##"))
        found = _PARAMETER.match(inner, 1 if length else 0)
        if found is None or (length and found.end() != len(inner)):
            return [self._unknown(text, _UNCLEAR)]
        name, key, rest = found[1], found[2], inner[found.end() :]
        known = self._value(name, key)
        if length:
            counted = name in "@*" or key in ("@", "*")
            size = len(self._all(name)) if counted else len(plain((known or [""])[0]))
            return [str(size)]
        if rest[:1] == ":" and rest[1:2] not in tuple("-=+?"):
            return self._slice(known, rest[1:], name if name in "@*" else key or "", text)
        if operator := re.match(r":?[-=+?]", rest):
            return self._default(name, key, known, operator[0], rest[operator.end() :], text)
        values = self._found(name, key, text) or []
        if not rest:
            return values
        change = self._change(rest)
        return [self._changed(value, change, text) for value in values]

    def _all(self, name: str) -> list[str]:
        if name in "@*":
            return self.variables.parameters
        if name in self.variables.arrays:
            return _in_order(self.variables.arrays[name])
        return [self.variables.texts[name]] if name in self.variables.texts else []

    def _alternative(self, inner: str) -> str | None:
        """The word of `${x:-word}` or `${x:+word}` where it stands for the value; its quotes count."""
        found = _PARAMETER.match(inner)
        operator = re.match(r":?[-+]", inner[found.end() :]) if found else None
        if found is None or operator is None:
            return None
        is_set = self._is_set(self._value(found[1], found[2]), operator[0])
        word = inner[found.end() + operator.end() :]
        return word if is_set is (operator[0][-1] == "+") else None

    def _is_set(self, known: list[str] | None, operator: str) -> bool:
        """Whether values count as set; with a colon empty ones do not."""
        if not known:
            return False
        return operator[0] != ":" or any(plain(value) or self.unknown(value) for value in known)

    def _default(
        self, name: str, key: str | None, known: list[str] | None, operator: str, word: str, text: str
    ) -> list[str]:
        """`${x:-word}` and its like."""
        line = self._line
        is_set = self._is_set(known, operator)
        sign = operator[-1]
        if sign == "+":
            return [self.text(Word(word, line))] if is_set else [""]
        if is_set:
            return self._found(name, key, text) or []
        if sign == "?":
            gap = Gap("parameter", name, line, plain(self.text(Word(word, line))))
            return [self.mark(gap)]
        value = self.text(Word(word, line))
        if sign == "=" and _NAME.fullmatch(name):
            self.variables.texts[name] = value
        self._line = line
        return [value]

    def _slice(self, known: list[str] | None, words: str, key: str, text: str) -> list[str]:
        """`${x:first:count}`; of the parameters the first is 1, of an array 0."""
        line = self._line
        first, colon, count = words.strip().partition(":")
        try:
            start = whole_number(plain(self.text(Word(first, line))), self.variables)
            size = whole_number(plain(self.text(Word(count, line))), self.variables) if colon else None
        except ValueError:
            return [self._unknown(text, _UNCLEAR)]
        self._line = line
        values = known or []
        if key not in ("@", "*"):
            if not values:
                return []
            if self.gaps_of(values[0]):
                return [self._unknown(text, _UNCLEAR)]
            return [_part(values[0], start, size)]
        start -= values is self.variables.parameters
        if start < 0 or (size is not None and size < 0):
            return [self._unknown(text, _UNCLEAR)]
        return values[start:][:size]

    def _change(self, rest: str) -> Callable[[str], str] | None:
        """What `${x%word}` and its like do to a text; None for what is not understood."""
        line = self._line
        found = re.match(r"##|#|%%|%|//|/#|/%|/|\^\^|\^|,,|,", rest)
        if found is None:
            return None
        sign, word = found[0], rest[found.end() :]
        if sign in ("^^", "^", ",,", ","):
            if word:
                return None
            turned = str.upper if sign[0] == "^" else str.lower
            return turned if len(sign) == 2 else lambda text: turned(text[:1]) + text[1:]
        pattern, new = word, ""
        if sign[0] == "/":
            end = 0
            while end < len(word) and word[end] != "/":
                end = after(word, end)
            pattern, new = word[:end], self.text(Word(word[end + 1 :], line))
        asked = self.text(Word(pattern, line), as_pattern=True)
        self._line = line
        if self.gaps_of(asked) or self.gaps_of(new):
            return None
        return replacement(sign, pattern_regex(asked), new) if asked or sign[1:] in ("#", "%") else str

    def _changed(self, value: str, change: Callable[[str], str] | None, text: str) -> str:
        if change is None or self.unknown(value):
            return self._unknown(text, _UNCLEAR if change is None else "follows from what is not known")
        return change(plain(value)) + "".join(found[0] for found in MARK.finditer(value))

    # --- arithmetic

    def arithmetic(self, expression: str, text: str, line: int) -> str:
        """The value of an expression of whole numbers; a gap where it cannot be known."""
        found = self.text(Word(expression.replace('"', ""), line))
        self._line = line
        for name in _NAME.findall(found):
            self.seen |= set(self.gaps_of(self.variables.texts.get(name, "")))
        if not self.gaps_of(found):
            try:
                return str(whole_number(found, self.variables))
            except ValueError:
                pass
        return self._unknown(text, "cannot be worked out without what is not set or not known")


def _in_order(elements: Mapping[str, str]) -> list[str]:
    keys = sorted(elements, key=int) if all(key.isdecimal() for key in elements) else list(elements)
    return [elements[key] for key in keys]


def _part(text: str, start: int, size: int | None) -> str:
    start = start if start >= 0 else max(len(text) + start, 0)
    end = len(text) if size is None else len(text) + size if size < 0 else start + size
    return text[start:end]


def _braced(text: str) -> list[str]:
    """A word for each text of `{a,b}` and each number of `{1..3}` in it."""
    place = 0
    while place < len(text):
        found = _BRACES.match(text, place) if text[place] == "{" else None
        if found is None:
            place = after(text, place)
            continue
        if found[4] is not None:
            middle: list[str] | None = found[4].split(",")
        else:
            first, last, step = int(found[1]), int(found[2]), abs(int(found[3] or 1)) or 1
            middle = _counted(first, last, step if first <= last else -step)
        if middle is None:
            return [text]
        rest = _braced(text[found.end() :])
        if len(rest) * len(middle) > _MOST_WORDS:
            return [text]
        return [f"{text[:place]}{one}{other}" for one in middle for other in rest]
    return [text]


def _counted(first: int, last: int, step: int) -> list[str] | None:
    """Numbers from the first to the last; None for too many."""
    numbers = range(first, last + (1 if step > 0 else -1), step) if step else range(0)
    return list(map(str, numbers)) if len(numbers) <= _MOST_WORDS else None


def _is_whole(text: str) -> bool:
    return re.fullmatch(r"-?\d{1,18}", text) is not None


def _too_long(line: int) -> BadInput:
    rule = "makes a text that is too long to be an argument list."
    return BadInput(Fault(f"line {line} of the script", rule, "Give the argument list itself, after `--`."))
