# ruff: noqa: RUF001
import unicodedata

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from megatron_cpt.preparation.hashed_words import hashed_words

TEXTS = st.lists(st.text(alphabet="ab 漢字é.,\nA\uff22\U00010400\u0301\u200d\u0e01\u0e34", max_size=30), max_size=8)


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


SENTENCES = {
    "Hindi": ("यह एक छोटी सी कहानी है जो हिन्दी में लिखी गई है और इसमें कई शब्द हैं", 17),
    "Bengali": ("আমি বাংলায় গান গাই এবং প্রতিদিন নতুন কিছু শিখি", 9),
    "Tamil": ("தமிழ் மொழி உலகின் பழமையான மொழிகளில் ஒன்று", 6),
    "Arabic with vowels": ("الْحَمْدُ لِلَّهِ رَبِّ الْعَالَمِينَ الرَّحْمَٰنِ الرَّحِيمِ", 6),
    "Hebrew with vowels": ("בְּרֵאשִׁית בָּרָא אֱלֹהִים אֵת הַשָּׁמַיִם וְאֵת הָאָרֶץ", 7),
    "Persian with joiners": ("می\u200cخواهم کتاب\u200cها را بخوانم", 4),
    "Vietnamese decomposed": (unicodedata.normalize("NFD", "Tiếng Việt rất đẹp"), 4),
    "Yoruba": ("ọ̀rọ̀ yìí jẹ́ ti Yorùbá", 5),
    "Tibetan": ("བོད་ཡིག་ནི་སྐད་ཡིག", 5),
    "Greek with accents": ("Ἐν ἀρχῇ ἦν ὁ λόγος", 5),
    "Korean": ("안녕하세요 저는 학생입니다", 3),
    "Japanese with marks": ("か\u3099く", 2),
    "emoji": ("I ❤\ufe0f you 👩\u200d👩\u200d👧 so", 3),
    "soft hyphens": ("con\u00adtent and more", 3),
    "zero width spaces": ("one\u200btwo", 2),
}


@pytest.mark.parametrize("script", SENTENCES)
def test_words_of_every_script_that_parts_them(script: str) -> None:
    text, words = SENTENCES[script]
    assert len(words_of(text)) == words


def test_marks_count_and_joiners_do_not() -> None:
    assert words_of("कि") != words_of("का") and words_of("كَتَبَ") != words_of("كُتُبٌ")
    assert words_of("می\u200cخواهم") == words_of("میخواهم")
    assert words_of("con\u00adtent") == words_of("content")
    # A mark that stands on nothing is no word.
    assert words_of("\u0301 a \ufe0f b") == words_of("a b")
    assert words_of("\u0301") == []


@pytest.mark.parametrize(
    "text", ["ภาษาไทยไม่มีช่องว่างระหว่างคำในประโยค", "ພາສາລາວບໍ່ມີຍະຫວ່າງ", "ភាសាខ្មែរមិនមានដកឃ្លា", "မြန်မာဘာသာစကား"]
)
def test_where_no_blank_parts_words_they_are_short(text: str) -> None:
    """Neither a letter nor a line each: 13 of them are some words of a sentence."""
    words = words_of(text)
    assert len(text) / 6 < len(words) < len(text) / 1.5


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
