import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from megatron_cpt.preparation.hashed_words import hashed_words

TEXTS = st.lists(st.text(alphabet="ab 漢字é.,\nA\uff22\U00010400", max_size=30), max_size=8)


def words_of(text: str) -> list[int]:
    return hashed_words([text]).hashes.tolist()


def test_case_blanks_and_punctuation_make_no_difference() -> None:
    assert words_of("The quick, brown fox") == words_of("  the QUICK\n\u201cbrown\u201d fox!")
    assert words_of("\ufb01rst \uff21\uff22\uff11") == words_of("first ab1")
    assert words_of("straße") != words_of("strasse") and words_of("naive") != words_of("naïve")
    assert len(set(words_of("fox foxes ox o x xo"))) == 6


def test_ideographs_are_words() -> None:
    words = words_of("漢字かな a漢b")
    assert len(words) == 7
    assert words[0] == words[5]


@given(texts=TEXTS)
def test_each_text_is_hashed_as_it_would_be_alone(texts: list[str]) -> None:
    together = hashed_words(texts)
    alone = [hashed_words([text]) for text in texts]
    assert together.counts.tolist() == [int(one.counts[0]) for one in alone]
    assert together.hashes.tolist() == [value for one in alone for value in one.hashes.tolist()]


@given(texts=TEXTS, length=st.integers(1, 5))
def test_ngrams_are_the_runs_of_words_inside_a_text(texts: list[str], length: int) -> None:
    words = hashed_words(texts)
    ngrams = words.ngrams(length)
    runs = []
    for one in np.split(words.hashes, np.cumsum(words.counts)[:-1]) if texts else []:
        runs.append([tuple(one[i : i + length].tolist()) for i in range(max(0, len(one) - length + 1))])
    assert ngrams.counts.tolist() == [len(run) for run in runs]
    flat = [run for of_text in runs for run in of_text]
    # Equal where the words are, and nowhere else.
    assert len(ngrams.hashes) == len(flat)
    assert (
        len(set(ngrams.hashes.tolist())) == len(set(flat)) == len(set(zip(flat, ngrams.hashes.tolist(), strict=True)))
    )


def test_the_hashes_never_change() -> None:
    words = hashed_words(["The end", "漢"])
    assert words.hashes.tolist() == [6643415683882636782, 515634231988702783, 12873505095704007739]
    assert words.ngrams(2).hashes.tolist() == [4596552037290336339]
