"""The questions of the study of the stability gap: made by rule, one error in each wrong choice."""

import pytest

from examples.studies.stability_gap.questions import (
    RULES,
    domain_terms,
    minimal_pair,
    minimal_pairs,
    sentences,
    term_questions,
)

PAIRS = {
    "agreement": ("In the morning they were all gone.", "In the morning", "they were all gone.", "they was all gone."),
    "determiner": (
        "He had never seen those houses before.",
        "He had never seen",
        "those houses before.",
        "that houses before.",
    ),
    "article": ("She had met with an enemy there.", "She had met with", "an enemy there.", "a enemy there."),
    "case": ("The old man spoke to them again.", "The old man spoke", "to them again.", "to they again."),
    "verb form": ("The house must have been sold.", "The house must", "have been sold.", "have be sold."),
    "order": ("They went out into a part of the town.", "They went out into a part", "of the town.", "the of town."),
}


@pytest.mark.parametrize("phenomenon", RULES)
def test_each_rule_makes_one_error(phenomenon: str) -> None:
    sentence, *expected = PAIRS[phenomenon]
    assert minimal_pair(sentence, phenomenon) == tuple(expected)


def test_an_error_at_the_beginning_is_no_question() -> None:
    assert minimal_pair("They were all gone in the morning.", "agreement") is None


def test_sentences_are_plain_and_taken_once() -> None:
    plain = "The old man went down to the river."
    text = (
        f"{plain} Too short. He paid 25 pounds for the old house there. {plain} (He) said that it was not his at all."
    )
    assert list(sentences([text])) == [plain]


def test_right_choices_have_either_place_equally_often() -> None:
    texts = [f"The old man said that they were {word}ing in the wood." for word in ("walk", "talk", "sing", "hid")]
    questions = minimal_pairs(texts, each=4)
    assert {question["task"] for question in questions} == {"agreement", "case", "order"}
    assert sorted(question["answer"] for question in questions) == [0] * 6 + [1] * 6
    for question in questions:
        right = question["choices"][question["answer"]]
        assert any(f"{question['question']} {right}" == text for text in texts)


def test_terms_are_words_of_the_domain_with_others_like_them() -> None:
    names = ("placebo", "patient", "insulin", "glucose", "anemia")
    domain = [f"The doctor said that in the trial the {name} was given to everyone." for name in names * 30]
    terms = domain_terms(domain, ["The doctor went away for the whole of the summer and came back."] * 100)
    assert set(names) <= set(terms) and "doctor" not in terms
    questions = term_questions(domain, dict.fromkeys(names, 30), most=10)
    assert len(questions) == 5  # each sentence once
    for question in questions:
        assert question["question"] == "The doctor said that in the trial the"
        assert len(set(question["choices"])) == 4
