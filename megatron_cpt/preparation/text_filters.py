"""Rules of papers by which documents of the web are left out, as datatrove has them.

They are made for English: words are spaCy's, and Gopher's quality rules ask for English stop words. C4's rules about
lines decide here about documents alone: no text is changed.
"""

import importlib.metadata
import importlib.util
from collections.abc import Sequence
from typing import Any

from megatron_cpt.config.errors import BadInput, Fault

FILTERS = {
    "gopher-quality": "GopherQualityFilter",
    "gopher-repetition": "GopherRepetitionFilter",
    "c4": "C4QualityFilter",
    "fineweb": "FineWebQualityFilter",
}
"""datatrove's classes by name: arXiv:2112.11446 (table A1 and quality), arXiv:1910.10683, arXiv:2406.17557."""
_LIBRARIES = ("datatrove", "spacy")


def filter_libraries() -> str:
    """What decides by the rules, with versions. Raises BadInput where it is not installed."""
    missing = [name for name in _LIBRARIES if importlib.util.find_spec(name) is None]
    if missing:
        rule = f"needs {' and '.join(missing)}, not installed."
        raise BadInput(Fault("--filter", rule, "pip install 'megatron-cpt[filters]'."))
    return ", ".join(f"{name} {importlib.metadata.version(name)}" for name in _LIBRARIES)


class TextFilters:
    """Some filters, asked one after another."""

    def __init__(self, names: Sequence[str]) -> None:
        # An optional library.
        import datatrove.data  # noqa: PLC0415
        import datatrove.pipeline.filters as filters  # noqa: PLC0415

        self._document = datatrove.data.Document
        self._filters: dict[str, Any] = {name: getattr(filters, FILTERS[name])() for name in names}
        # So that words are read before workers are forked: each would read them for itself.
        self.reason("A text.")

    def reason(self, text: str) -> str | None:
        """The first rule that leaves a document out; None: it stays."""
        for name, rules in self._filters.items():
            try:
                answer = rules.filter(self._document(text=text, id=""))
            except ZeroDivisionError:  # of shares of the words, where there is no word
                answer = False, "no words"
            if answer is not True:
                return f"--filter {name}: {answer[1] if isinstance(answer, tuple) else 'left out'}"
        return None
