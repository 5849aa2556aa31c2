"""Questions that a small model answers above chance, made by rule from held-out text.

A model of a million parameters answers no MMLU. Two kinds of questions take their place, both in the format of
docs/tasks.md:

- minimal pairs (as BLiMP has them, arXiv:1912.00582): a sentence of general text and the same sentence with one error
  of grammar. What comes before the error is the question, both rests are the choices.
- terms: a sentence of the domain up to one of its terms; the choices are the term and three other terms of about the
  same frequency and length.
"""

import random
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

Question = dict[str, Any]

_SENTENCE_END = re.compile(r"(?<=[.!?])\s+(?=[A-Z])")
_PLAIN = re.compile(r"[A-Za-z][A-Za-z ,;'-]*[.]")
_WORD = re.compile(r"[A-Za-z]+")
SHORTEST, LONGEST = 8, 30
"""Words of a sentence that is used."""
LEAST_BEFORE = 3
"""Words before the error or the term: without them nothing tells what is right."""

_NUMBER = {"was": "were", "is": "are", "has": "have", "were": "was", "are": "is", "have": "has"}
_CASE = {"he": "him", "they": "them", "we": "us", "him": "he", "them": "they", "us": "we"}
_SINGULAR, _PLURAL = "he|she|it", "they|we"


def _swap(
    pattern: str, change: Callable[[re.Match[str]], str]
) -> tuple[re.Pattern[str], Callable[[re.Match[str]], str]]:
    return re.compile(pattern), change


RULES = {
    "agreement": _swap(
        rf"\b(?:(?:{_SINGULAR}) (?P<one>was|is|has)|(?:{_PLURAL}) (?P<many>were|are|have))\b",
        lambda found: f"{found[0].split()[0]} {_NUMBER[found[0].split()[1]]}",
    ),
    "determiner": _swap(
        r"\b(?:these|those) (?=[a-z]{3,}[^s\W]s\b)",
        lambda found: {"these": "this ", "those": "that "}[found[0].strip()],
    ),
    "article": _swap(
        r"\b(?:an (?=[aei][a-z]{3,})|a (?=[bcdfgklmnprstvw][a-z]{3,}))",
        lambda found: {"an": "a ", "a": "an "}[found[0].strip()],
    ),
    "case": _swap(
        r"\b(?:(?:to|of|with|from|for) (?:him|them|us)\b(?! (?:that|who|to))"
        r"|(?:he|they|we) (?:was|were|had|could|would)\b)",
        lambda found: " ".join(_CASE.get(word, word) for word in found[0].split()),
    ),
    "verb form": _swap(
        r"\b(?:would|could|should|will|may|must) be\b|\b(?:has|had|have) been\b",
        lambda found: found[0].replace(" been", " BE").replace(" be", " been").replace(" BE", " be"),
    ),
    "order": _swap(r"\b(?:of|in|to|from|with) the\b", lambda found: " ".join(reversed(found[0].split()))),
}
"""Phenomenon to what is looked for in a sentence, and what it becomes. Each makes nearly always an error of it."""


def sentences(texts: Iterable[str]) -> Iterator[str]:
    """Sentences of plain words, between SHORTEST and LONGEST words long, each once."""
    seen: set[str] = set()
    for text in texts:
        for sentence in _SENTENCE_END.split(" ".join(text.split())):
            if sentence not in seen and _PLAIN.fullmatch(sentence) and SHORTEST <= len(sentence.split()) <= LONGEST:
                seen.add(sentence)
                yield sentence


def minimal_pair(sentence: str, phenomenon: str) -> tuple[str, str, str] | None:
    """What comes before the error, the right rest and the wrong one; None where the rule finds no place."""
    pattern, change = RULES[phenomenon]
    for found in pattern.finditer(sentence):
        before = sentence[: found.start()].rstrip()
        if len(before.split()) >= LEAST_BEFORE:
            return before, sentence[found.start() :], change(found) + sentence[found.end() :]
    return None


def minimal_pairs(texts: Iterable[str], each: int, seed: int = 0) -> list[Question]:
    """Up to `each` questions of every phenomenon. The right choice has either place equally often."""
    generator = random.Random(seed)
    found: dict[str, list[tuple[str, str, str]]] = defaultdict(list)
    for sentence in sentences(texts):
        for phenomenon in RULES:
            pair = minimal_pair(sentence, phenomenon)
            if pair is not None:
                found[phenomenon].append(pair)
    questions = []
    for phenomenon in RULES:
        generator.shuffle(found[phenomenon])
        for number, (before, right, wrong) in enumerate(found[phenomenon][:each]):
            choices = [right, wrong] if number % 2 else [wrong, right]
            questions.append(_question(f"{phenomenon}-{number}", phenomenon, before, choices, choices.index(right)))
    return questions


def domain_terms(domain: Iterable[str], general: Iterable[str], least: int = 30, times: float = 20.0) -> dict[str, int]:
    """Words of six letters or more that the domain has at least `least` times, and `times` as often as general text.

    Returns:
        Each with its count in the domain.
    """
    counts = [Counter(word for text in texts for word in _WORD.findall(text)) for texts in (domain, general)]
    totals = [max(1, sum(count.values())) for count in counts]
    return {
        word: count
        for word, count in counts[0].items()
        if len(word) >= 6
        and word.islower()
        and count >= least
        and count / totals[0] >= times * (counts[1][word] + 1) / totals[1]
    }


def term_questions(texts: Iterable[str], terms: Mapping[str, int], most: int, seed: int = 0) -> list[Question]:
    """Questions for the first term of a sentence. No term is asked for more than five times."""
    generator = random.Random(seed)
    found = []
    for sentence in sentences(texts):
        words = list(_WORD.finditer(sentence))
        place = next((word for word in words[2 * LEAST_BEFORE :] if word[0] in terms), None)
        if place is not None:
            found.append((sentence[: place.start()].rstrip(), place[0]))
    generator.shuffle(found)
    asked: Counter[str] = Counter()
    questions = []
    for before, term in found:
        others = _alike(term, terms)
        if len(others) < 3 or asked[term] == 5 or len(questions) == most:
            continue
        asked[term] += 1
        choices = [term, *generator.sample(others, 3)]
        generator.shuffle(choices)
        questions.append(_question(f"term-{len(questions)}", "terms", before, choices, choices.index(term)))
    return questions


def _alike(term: str, terms: Mapping[str, int]) -> Sequence[str]:
    """Other terms of about the same length and frequency, in a fixed order."""
    return sorted(
        word
        for word, count in terms.items()
        if word != term and abs(len(word) - len(term)) <= 2 and 0.5 <= count / terms[term] <= 2
    )


def _question(name: str, task: str, before: str, choices: list[str], answer: int) -> Question:
    return {"id": name, "task": task, "question": before, "choices": choices, "answer": answer}
