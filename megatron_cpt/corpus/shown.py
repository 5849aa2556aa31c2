"""Documents of a dataset as text for people."""

import textwrap
from pathlib import Path
from typing import Any

import numpy.typing as npt

from megatron_cpt.config.errors import BadInput, Fault
from megatron_cpt.corpus.manifest import Manifest
from megatron_cpt.tokenizer.tokenize import Tokenizer


def tokenizer_of(manifest: Manifest, folder: str | None = None) -> Tokenizer | None:
    """The tokenizer in the folder asked for, or the manifest's where it still is; None where it is not.

    Raises BadInput where the folder holds another tokenizer than the dataset was made with.
    """
    if folder is not None:
        tokenizer = Tokenizer.load(folder)
        if manifest.tokenizer not in (None, tokenizer.identity):
            rule = "is not the tokenizer that the dataset was made with."
            raise BadInput(Fault(f"--tokenizer {folder}", rule, f"It was {manifest.tokenizer_folder}."))
        return tokenizer
    if manifest.tokenizer_folder is None or not Path(manifest.tokenizer_folder, "tokenizer.json").is_file():
        return None
    tokenizer = Tokenizer.load(manifest.tokenizer_folder)
    return tokenizer if tokenizer.identity == manifest.tokenizer else None


def shown(ids: npt.NDArray[Any], tokenizer: Tokenizer | None, most: int) -> str:
    """The beginning of a document, `most` tokens of it: as text, or as ids where no tokenizer is there."""
    more = "" if len(ids) <= most else f" ... ({len(ids):,} tokens)"
    head = ids[:most].tolist()
    text = tokenizer.decode(head) if tokenizer else textwrap.fill(" ".join(map(str, head)))
    # Documents are foreign text: nothing in them may steer the terminal.
    return "".join(c if c.isprintable() or c in "\n\t" else repr(c)[1:-1] for c in text) + more
