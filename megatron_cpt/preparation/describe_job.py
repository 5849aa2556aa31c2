"""What a call asks for as a Job over the files as they are now, or all that is wrong with it at once."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from megatron_cpt.config.errors import BadInput, Fault, refuse
from megatron_cpt.corpus.manifest import documents_column, load_manifest
from megatron_cpt.preparation.chat_template import ChatTemplate
from megatron_cpt.preparation.contamination import EvaluationSet, identity_of
from megatron_cpt.preparation.existing import prefixes_of
from megatron_cpt.preparation.indexed_input import TokenReader, faults_of_pairs
from megatron_cpt.preparation.input_kinds import Input
from megatron_cpt.preparation.inputs import find_inputs
from megatron_cpt.preparation.job import Job, PrepareSettings
from megatron_cpt.preparation.text_filters import filter_libraries
from megatron_cpt.preparation.text_signatures import refuse_without_rensa
from megatron_cpt.tokenizer.tokenizer import Tokenizer


def described_job(
    inputs: Sequence[str],
    tokenizer: str | Path | Tokenizer,
    output: Path,
    settings: PrepareSettings,
    evaluation: Sequence[EvaluationSet],
) -> tuple[Job, Tokenizer]:
    """The job of a call, over files as they are now, and its tokenizer, open. Raises BadInput as `prepare` does."""
    settings = replace(settings, decontaminate=identity_of(evaluation) if evaluation else None)
    refuse(_settings_faults(settings))
    if not output.name:
        raise BadInput(Fault(f"--output {output}", "is a folder.", "Give a prefix in it, such as data/corpus."))
    if settings.filters is not None:
        settings = replace(settings, filter_libraries=filter_libraries())
    written = prefixes_of(output, settings.parts)
    refuse(
        [
            Fault(f"--decontaminate {one.source}", _WRITTEN, "Name others.")
            for one in evaluation
            if Path(one.source).resolve() in written
        ]
    )
    if settings.dedup_against is not None:
        settings = replace(settings, dedup_against=_with_hashes([*settings.dedup_against], written))
    found = find_inputs(inputs, settings.document_per_line, settings.text_key)
    chat = settings.train_on is not None
    if chat:
        refuse(_not_json_lines(found.inputs))
    if not isinstance(tokenizer, Tokenizer):
        tokenizer = Tokenizer.load(tokenizer, settings.eod, settings.parse_special or chat)
    if chat:
        settings = replace(settings, chat_template=ChatTemplate.load(tokenizer).identity)
    job = Job.describe(output, settings, found.inputs, tokenizer, found.not_read)
    if job.datasets_read:
        reader = TokenReader(tokenizer, job.bos, job.eod, settings.looks_at_text)
        refuse(
            [
                *_meaningless_faults(settings),
                *faults_of_pairs(job.inputs, reader, bool(settings.holdout or settings.holdout_tokens)),
            ]
        )
    return job, tokenizer


def _not_json_lines(inputs: Sequence[Input]) -> list[Fault]:
    return [
        Fault(str(source.path), "is no JSON lines, and conversations are.", "Write a JSON object a line.")
        for source in inputs
        if source.kind != "json_lines"
    ]


def _meaningless_faults(settings: PrepareSettings) -> list[Fault]:
    """Settings that a dataset among the inputs has no meaning for."""
    given = {
        "--where": settings.where is not None,
        "--id-key": settings.id_key is not None,
        "--split-sentences": settings.split_sentences,
        "--max-length": settings.max_length is not None,
        "--filter": settings.filters is not None,
    }
    rule = "needs text and fields, and one of the inputs is a dataset of tokens."
    return [Fault(name, rule, "Leave it out, or give the files of text.") for name, there in given.items() if there]


def _chat_faults(settings: PrepareSettings) -> list[Fault]:
    """What is asked of conversations that are none, and of texts that are conversations."""
    default = PrepareSettings()
    if settings.train_on is None:
        remedy = "Give --chat, or leave --truncate out."
        return [Fault("--truncate without --chat", "is of conversations.", remedy)] if settings.truncate else []
    faults = [
        Fault(f"--chat and {flag}", rule, f"Leave {flag} out.")
        for flag, given, rule in (
            ("--text-key", settings.text_key != default.text_key, "contradict: a conversation's keys are known."),
            ("--bos", settings.bos != default.bos, "contradict: the chat template writes BOS, or none."),
            ("--split-sentences", settings.split_sentences, "contradict: the chat template writes one sequence."),
            ("--filter", settings.filters is not None, "contradict: the filters are for texts of the web."),
            ("--document-per-line", settings.document_per_line, "contradict: conversations are JSON lines."),
        )
        if given
    ]
    if settings.truncate and settings.max_length is None:
        faults.append(Fault("--truncate", "needs a length.", "Give --max-length TOKENS."))
    return faults


_WRITTEN = "is the dataset that is written."


def _with_hashes(prefixes: Sequence[str], written: set[Path]) -> dict[str, str]:
    """Datasets whose documents are left out, by their absolute prefixes, with the hash of their documents' hashes."""
    found: dict[str, str] = {}
    faults = []
    for text in prefixes:
        prefix = Path(text).absolute()
        manifest = load_manifest(prefix)
        name = f"--dedup-against {text}"
        if prefix.resolve() in written:
            faults.append(Fault(name, _WRITTEN, "Name others."))
        elif manifest.documents_sha256 is None:
            rule = "has no hashes of its documents' texts (documents.npy)."
            remedy = "Make them once: megatron-cpt prepare PREFIX --tokenizer PATH --output ANOTHER."
            faults.append(Fault(name, rule, remedy))
        else:
            documents_column(prefix, manifest)
            found[str(prefix)] = manifest.documents_sha256
    refuse(faults)
    return found


def _settings_faults(settings: PrepareSettings) -> list[Fault]:
    faults = [*_chat_faults(settings), *_length_faults(settings)]
    try:
        _ = settings.keys
    except BadInput as no_condition:
        faults += no_condition.faults
    threshold = settings.near_duplicates
    if threshold is None:
        return faults
    refuse_without_rensa()
    if not 0 < threshold <= 1:
        faults.append(Fault(f"--similarity {threshold}", "must be above 0 and at most 1.", "0.75 is usual."))
    if settings.keep_duplicates:
        rule = "contradict each other: exact copies are near duplicates."
        faults.append(Fault("--keep-duplicates and --dedup minhash", rule, "Give one of them."))
    return faults


_SHORTEST_PART = 16
"""Tokens that a part of a text may be limited to: any character goes in."""


def _length_faults(settings: PrepareSettings) -> list[Fault]:
    faults = []
    least = _SHORTEST_PART if settings.cuts else 1
    if settings.min_length is not None and settings.min_length < 1:
        faults.append(Fault(f"--min-length {settings.min_length}", "must be 1 or more.", "64 is usual."))
    if settings.max_length is not None and settings.max_length < least:
        faults.append(Fault(f"--max-length {settings.max_length}", f"must be {least} or more.", "4096 is usual."))
    if settings.cuts and settings.split_sentences:
        rule = "contradict: a document of sentences is not cut."
        faults.append(Fault("--max-length and --split-sentences", rule, "Give one of them."))
    return faults
