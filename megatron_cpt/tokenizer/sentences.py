"""Text to sentences, as Megatron-LM's --split-sentences does, with nothing downloaded.

nltk's Punkt needs a model of a language. Where nltk's own data are installed (NLTK_DATA, `punkt_tab`) that model
is used, as in Megatron-LM. Where they are not, Punkt learns from a sample of the input itself, with a few
abbreviations of English known from the start; every worker and every shard learns the same from the same input.
"""

from collections.abc import Callable, Sequence

from megatron_cpt.config.errors import BadInput, Fault

LONGEST_TEXT = 1_000_000
"""Characters that are split at a time, as in Megatron-LM."""
ABBREVIATIONS = (
    "dr mr mrs ms prof rev hon st sr jr gen col lt capt sgt vs etc al fig figs eq no vol pp ed eds i.e e.g cf "
    "approx ca dept inc ltd co corp jan feb mar apr jun jul aug sept sep oct nov dec u.s u.k a.m p.m ph.d"
)
"""Words of English that end in a point without ending a sentence."""


def sentence_splitter(language: str, keep_newlines: bool, sample: Callable[[], Sequence[str]]) -> "SentenceSplitter":
    """The splitter of a language, from nltk's data or else learnt from the sample.

    Raises BadInput where nltk's data are not installed and the language is not English, of which alone we know
    abbreviations.
    """
    # It takes a second to import.
    import nltk.data  # noqa: PLC0415
    from nltk.tokenize import punkt  # noqa: PLC0415

    class BlanksKept(punkt.PunktLanguageVars):
        """What follows a sentence end up to the next word stays with the sentence."""

        _period_context_fmt = r"\S*%(SentEndChars)s\s*(?=(?P<after_tok>%(NonWord)s|(?P<next_tok>\S+)))"

    try:
        nltk.data.find(f"tokenizers/punkt_tab/{language}/")
        parameters = punkt.PunktTokenizer(language)._params
    except LookupError:
        if language != "english":
            remedy = "Put nltk's punkt_tab where NLTK_DATA points."
            raise BadInput(Fault(f"--lang {language}", "is known only from nltk's data.", remedy)) from None
        trainer = punkt.PunktTrainer()
        trainer.train("\n\n".join(sample()), finalize=True)
        parameters = trainer.get_params()
        parameters.abbrev_types |= set(ABBREVIATIONS.split())
    variables = BlanksKept() if keep_newlines else punkt.PunktLanguageVars()
    return SentenceSplitter(punkt.PunktSentenceTokenizer(parameters, lang_vars=variables).tokenize)


class SentenceSplitter:
    """Text to its sentences."""

    def __init__(self, tokenize: Callable[[str], list[str]]) -> None:
        self._tokenize = tokenize

    def __call__(self, text: str) -> list[str]:
        parts = (text[start : start + LONGEST_TEXT] for start in range(0, len(text), LONGEST_TEXT))
        return [sentence for part in parts for sentence in self._tokenize(part)]
