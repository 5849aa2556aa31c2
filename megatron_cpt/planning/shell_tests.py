"""Whether the conditions of a bash script hold: `[ ]`, `test`, `[[ ]]`, read without looking at files or programs."""

import re
from collections.abc import Callable, Mapping, Sequence

from megatron_cpt.planning.shell_nodes import Word
from megatron_cpt.planning.shell_values import pattern_regex, plain, whole_number
from megatron_cpt.planning.shell_words import Words

_OF_FILES = frozenset(f"-{letter}" for letter in "abcdefghkprstuwxGLNOS")
_BINARY = frozenset({"=", "==", "!=", "=~", "<", ">", "-eq", "-ne", "-gt", "-ge", "-lt", "-le", "-nt", "-ot", "-ef"})
_ORDERS: Mapping[str, Callable[[int, int], bool]] = {
    "-eq": lambda left, right: left == right,
    "-ne": lambda left, right: left != right,
    "-gt": lambda left, right: left > right,
    "-ge": lambda left, right: left >= right,
    "-lt": lambda left, right: left < right,
    "-le": lambda left, right: left <= right,
}
_PLAIN_REGEX = re.compile(r"\^?[\w./ -]*\$?")
"""Regular expressions whose meaning is that of their letters."""


def holds(words: Sequence[str], expand: Words) -> bool | None:
    """Whether the words of `[ ]` or `test`, expanded, hold; None where that cannot be known."""
    return _Condition([(word, word) for word in words], ("-o", "-a"), expand).value()


def holds_in_brackets(words: Sequence[Word], expand: Words) -> bool | None:
    """Whether the words of `[[ ]]`, as they are written, hold; None where that cannot be known."""
    terms = [
        (word.text, word.text)
        if word.text in ("&&", "||", "(", ")", "!", "<", ">", "=~") or word.text.startswith("-") or word.text in _BINARY
        else (expand.text(word), expand.text(word, as_pattern=True))
        for word in words
    ]
    return _Condition(terms, ("||", "&&"), expand, by_pattern=True).value()


class _Condition:
    """A condition, whose terms have a text and a pattern."""

    def __init__(
        self, terms: Sequence[tuple[str, str]], joints: tuple[str, str], expand: Words, by_pattern: bool = False
    ) -> None:
        self.terms, self.joints, self.expand, self.by_pattern = terms, joints, expand, by_pattern
        self.place = 0

    def value(self) -> bool | None:
        """Its value. What is left over is a mistake of the script, and does not hold."""
        if not self.terms:
            return False
        found = self._either()
        return found if self.place == len(self.terms) else False

    def _next(self, ahead: int = 0) -> str:
        place = self.place + ahead
        return self.terms[place][0] if place < len(self.terms) else ""

    def _either(self) -> bool | None:
        found = self._both()
        while self.place < len(self.terms) and self._next() == self.joints[0]:
            self.place += 1
            other = self._both()
            found = True if found or other else None if None in (found, other) else False
        return found

    def _both(self) -> bool | None:
        found = self._one()
        while self.place < len(self.terms) and self._next() == self.joints[1]:
            self.place += 1
            other = self._one()
            found = False if found is False or other is False else None if None in (found, other) else True
        return found

    def _one(self) -> bool | None:
        left = len(self.terms) - self.place
        if left > 1 and self._next() == "!" and not (left >= 3 and self._next(1) in _BINARY):
            self.place += 1
            inner = self._one()
            return None if inner is None else not inner
        if left > 2 and self._next() == "(" and self._next(1) not in _BINARY:
            self.place += 1
            inner = self._either()
            if self._next() == ")":
                self.place += 1
            return inner
        if left > 2 and self._next(1) in _BINARY:
            first, sign, (second, pattern) = self._next(), self._next(1), self.terms[self.place + 2]
            self.place += 3
            return self._compared(first, sign, second, pattern)
        word = self._next()
        if left > 1 and re.fullmatch(r"-[a-zA-Z]", word) and self._next(1) not in self.joints:
            self.place += 2
            return self._unary(word, self._next(-1))
        self.place += 1
        return self._is_text(word)

    def _is_text(self, text: str) -> bool | None:
        """Whether it is not empty."""
        if plain(text):
            return True
        return None if self.expand.unknown(text) else False

    def _unary(self, sign: str, text: str) -> bool | None:
        if sign in ("-z", "-n"):
            found = self._is_text(text)
            return found if sign == "-n" or found is None else not found
        if sign == "-v" and not self.expand.unknown(text):
            name = plain(text)
            return name in self.expand.variables.texts or name in self.expand.variables.arrays
        # An empty name is that of no file.
        return False if sign in _OF_FILES and not text else None

    def _compared(self, first: str, sign: str, second: str, pattern: str) -> bool | None:
        if self.expand.unknown(first + second) or sign in ("-nt", "-ot", "-ef"):
            return None
        left, right = plain(first), plain(second)
        if sign in _ORDERS:
            try:
                sides = (whole_number(side, self.expand.variables) for side in (left, right))
                return _ORDERS[sign](*sides)
            except ValueError:
                # `[ "" -gt 1 ]` is a mistake of which a shell tells, and goes on; in `[[ ]]` an empty text is 0.
                return None
        if sign in ("<", ">"):
            return left < right if sign == "<" else left > right
        if sign == "=~":
            return bool(re.search(right, left)) if _PLAIN_REGEX.fullmatch(right.replace(".", "")) else None
        if self.by_pattern:
            same = re.fullmatch(pattern_regex(plain(pattern)), left, re.DOTALL) is not None
        else:
            same = left == right
        return same is (sign != "!=")
