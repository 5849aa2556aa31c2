"""Text that a score is learned from: datasets, selections, or files that `prepare` reads."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megatron_cpt.config.errors import BadInput, Fault
from megatron_cpt.corpus.indexed import idx_path
from megatron_cpt.corpus.manifest import Manifest, file_sha256
from megatron_cpt.corpus.selection import SUFFIX, SelectedDataset, load_selection, whole_dataset
from megatron_cpt.corpus.shown import tokenizer_of
from megatron_cpt.preparation.inputs import input_files
from megatron_cpt.preparation.job import PrepareSettings
from megatron_cpt.preparation.prepare import prepare


@dataclass(frozen=True)
class Reference:
    """One reference as the user named it."""

    path: str
    """Prefix, selection, or file, folder or glob of files."""
    sha256: str
    """Hash of its content."""
    parts: tuple[SelectedDataset, ...]
    """Its tokens; none where it is text still to be tokenized."""

    def described(self) -> dict[str, Any]:
        """What to keep of it: the content decides, the name is for people."""
        return {"name": Path(self.path).name, "sha256": self.sha256}


def open_references(option: str, paths: Sequence[str], manifest: Manifest) -> list[Reference]:
    """The references that an option names, to be read as the dataset of `manifest` is tokenized.

    Raises BadInput where there are none, one is missing, or one is tokenized otherwise.
    """
    if not paths:
        raise BadInput(Fault(option, "is needed.", "Name datasets, selections or files of text."))
    return [_open(option, path, manifest) for path in paths]


def tokenized(
    references: Sequence[Reference], manifest: Manifest, text_key: str, folder: Path
) -> list[SelectedDataset]:
    """The documents of references, those of files tokenized into `folder` as the dataset of `manifest` was.

    Raises BadInput as `prepare` does.
    """
    parts: list[SelectedDataset] = []
    for number, reference in enumerate(references):
        parts += reference.parts
        if not reference.parts:
            assert manifest.tokenizer_folder is not None, "open_references asked for it"
            settings = PrepareSettings(
                text_key=text_key,
                eod=(manifest.settings or {}).get("eod"),
                append_eod=manifest.eod is not None,
                bos="never",
                order="as_read",
            )
            prefix = folder / f"reference-{hashlib.sha256(reference.path.encode()).hexdigest()[:8]}-{number}"
            prepare([reference.path], manifest.tokenizer_folder, prefix, settings)
            parts.append(whole_dataset(prefix))
    return parts


def _open(option: str, path: str, manifest: Manifest) -> Reference:
    if path.endswith(SUFFIX):
        selection = load_selection(path)
        reference = Reference(path, selection.sha256, selection.datasets)
    elif idx_path(path).is_file():
        whole = whole_dataset(path)
        reference = Reference(path, whole.manifest.data_sha256, (whole,))
    else:
        files = [source.path for source in input_files([path])]
        if tokenizer_of(manifest) is None:
            rule = "is text, and the tokenizer of the dataset is unknown or no longer where it was."
            raise BadInput(Fault(f"{option} {path}", rule, "Give a dataset made with the same tokenizer."))
        hashes = "\n".join(file_sha256(file) for file in files)
        return Reference(path, hashlib.sha256(hashes.encode()).hexdigest(), ())
    for part in reference.parts:
        if None not in (manifest.tokenizer, part.manifest.tokenizer) and manifest.tokenizer != part.manifest.tokenizer:
            rule = f"is made with another tokenizer ({part.manifest.tokenizer_folder})."
            raise BadInput(Fault(f"{option} {path}", rule, "Give its text, or a dataset made with the same tokenizer."))
    return reference
