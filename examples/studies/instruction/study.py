"""The study of instruction data: a quarter of it four times against all of it once, at equal tokens, in five seeds.

    python -m examples.studies.instruction.study ANSWERS.jsonl OTHER.jsonl GENERAL.jsonl REFERENCE.jsonl

Each file holds one JSON object with a `text` a line and may be compressed (.zst). ANSWERS has pages of `Question: ...`
and `Answer: ...` (MedQuAD); OTHER has a question, an abstract and its conclusion (PubMedQA, which no run is trained
on); REFERENCE is text of the domain by which answers are scored. The base is that of the study of laws, a Llama of 4
layers of 64 that knows general text alone; GENERAL is that text.

What a run measured is added to results/curves.csv as soon as it has ended. Called again, also on another machine with
the same texts, the study goes on with the runs that are not there. evaluate.py reads that file.
"""

import argparse
import re
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import orjson
from safetensors.numpy import load_file

from examples.studies.laws.study import RESULTS as RESULTS_OF_LAWS
from examples.studies.runs import CurveRow, call, lines_of, train_missing
from megatron_cpt.api import open_dataset
from megatron_cpt.runs.records import read_records

RESULTS = Path(__file__).parent / "results"
BASE = RESULTS_OF_LAWS / "bases/decayed"
SEQUENCE_LENGTH, BATCH = 512, 8
"""Tokens, and sequences of a step."""
STEPS, PEAK = 500, 1e-3
TOKENS = STEPS * BATCH * SEQUENCE_LENGTH
"""Of every run, and of all conversations that are used."""
LONGEST = 1300
"""Characters of an answer: nearly all of them fit a sequence."""
SIMILAR = 0.6
"""Cosine of the embeddings of two conversations that are not both chosen by the arm `diverse`."""
SEEDS = (1, 2, 3, 4, 5)
TEMPLATE = (
    "{% for message in messages %}{% if message['role'] == 'assistant' %}Answer: "
    "{% generation %}{{ message['content'] + '\\n' }}{% endgeneration %}"
    "{% else %}{{ 'Question: ' + message['content'] + '\\n' }}{% endif %}{% endfor %}"
)
"""Plain words, since the base knows no control tokens."""


@dataclass(frozen=True)
class Arm:
    """One way to train on the same number of tokens."""

    name: str
    part: str | None = None
    """A quarter of the conversations, four times: `random`; `best`, by the score; `diverse`, by score and diversity.
    None: all of them once."""
    replay: float = 0.0
    """Share of general text."""
    reweighted: bool = False
    """Sequences are weighted by their losses (arXiv:2502.06733)."""


ARMS = [
    Arm("all-once"),
    *(Arm(f"{part}-four-times", part) for part in ("random", "best", "diverse")),
    Arm("all-once-replay-10", replay=0.1),
    Arm("best-four-times-replay-10", "best", replay=0.1),
    Arm("all-once-reweighted", reweighted=True),
]


def main() -> None:
    """Conversations, their parts, then every run that is not in the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("answers", "other", "general", "reference"):
        parser.add_argument(name, type=Path)
    parser.add_argument("--output", type=Path, default=Path("study"), metavar="STUDY")
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time, one thread each (default: 2)")
    parser.add_argument("--results", type=Path, default=RESULTS, metavar="FOLDER")
    args = parser.parse_args()
    study = args.output
    (study / "configs").mkdir(parents=True, exist_ok=True)
    args.results.mkdir(parents=True, exist_ok=True)
    prepare_chats(study, {"answers": medquad(args.answers), "other": pubmedqa(args.other)})
    for name, path in (("general", args.general), ("reference", args.reference)):
        call("prepare", str(path), "--tokenizer", str(BASE), "--output", str(study / "data" / name), "--holdout", "4%")
    select_parts(study)
    configs = {run_name(arm, seed): run_config(study, arm, seed) for seed in SEEDS for arm in ARMS}
    train_missing(study, args.results / "curves.csv", configs, args.jobs, rows_of)


def run_name(arm: Arm, seed: int) -> str:
    """Of its run folder."""
    return f"{arm.name}-seed-{seed}"


def medquad(path: Path) -> Iterator[tuple[str, str]]:
    """Questions and answers of pages that hold several of them."""
    for line in lines_of(path):
        for pair in orjson.loads(line)["text"].split("\n\nQuestion: ")[1:]:
            question, _, answer = pair.partition("\nAnswer: ")
            if answer.strip() and len(answer) <= LONGEST:
                yield question.strip(), answer.strip()


def pubmedqa(path: Path) -> Iterator[tuple[str, str]]:
    """The questions of abstracts, and their conclusions."""
    for line in lines_of(path):
        text = orjson.loads(line)["text"]
        conclusion = re.search(r"\nCONCLUSIONS?: (.+)", text, re.DOTALL)
        if conclusion is not None:
            yield text.split("\n", 1)[0], conclusion[1].strip()


def prepare_chats(study: Path, conversations: dict[str, Iterable[tuple[str, str]]]) -> None:
    """STUDY/data/NAME of each; 4 % are held out."""
    folder = study / "tokenizer"
    if not folder.exists():
        folder.mkdir()
        for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"):
            shutil.copyfile(BASE / name, folder / name)
        (folder / "chat_template.jinja").write_text(TEMPLATE)
    for name, pairs in conversations.items():
        path = study / f"{name}.jsonl"
        if not path.exists():
            lines = [orjson.dumps({"prompt": question, "response": answer}) + b"\n" for question, answer in pairs]
            path.write_bytes(b"".join(lines))
        words = ("--chat", "--max-length", str(SEQUENCE_LENGTH), "--max-rejected", "20%", "--holdout", "4%")
        call("prepare", str(path), "--tokenizer", str(folder), "--output", str(study / "data" / name), *words)


def select_parts(study: Path) -> None:
    """Quarters of the conversations; a random one differs from seed to seed."""
    answers = study / "data/answers"
    if not answers.with_name("answers.ngram.npy").exists():
        call("score", str(answers), "--by", "ngram", "--reference", str(study / "data/reference"))
        np.save(answers.with_name("answers.embedding.npy"), mean_embeddings(answers))
    _select(answers, study / "data/all", "--tokens", str(TOKENS), "--keep", "random")
    whole = study / "data/all.selection.json"
    best = ("--share", "25%", "--by", "ngram", "--keep", "lowest")
    _select(whole, study / "data/best", *best)
    _select(whole, study / "data/diverse", *best, "--diverse", str(SIMILAR), "--embeddings", "embedding")
    for seed in SEEDS:
        _select(whole, study / f"data/random-{seed}", "--share", "25%", "--keep", "random", "--seed", str(seed))


def _select(source: Path, target: Path, *words: str) -> None:
    if not target.with_name(f"{target.name}.selection.json").exists():
        call("select", str(source), *words, "--output", str(target))


def mean_embeddings(prefix: Path) -> npt.NDArray[np.float32]:
    """float32 [documents, hidden size]: the mean of the base's embeddings of each document's tokens, less the mean of
    all documents."""
    rows = load_file(BASE / "model.safetensors")["model.embed_tokens.weight"]
    dataset = open_dataset(prefix)
    means = np.stack([rows[dataset.document(number)].mean(axis=0) for number in range(dataset.documents)])
    return means - means.mean(axis=0)


def run_config(study: Path, arm: Arm, seed: int) -> dict[str, Any]:
    """One run."""
    data = study / "data"
    part = {None: "all", "random": f"random-{seed}"}.get(arm.part, arm.part)
    sources: dict[str, Any] = {"answers": {"paths": [str(data / f"{part}.selection.json")], "role": "domain"}}
    config: dict[str, Any] = {
        "run": {"folder": str(study / "runs" / run_name(arm, seed)), "seed": 100 + seed, "log_interval": "100 steps"},
        "model": {"hf": str(BASE)},
        "data": {
            "sequence_length": SEQUENCE_LENGTH,
            "attention": "within_documents",
            "sources": sources,
        },
        "training": {
            "tokens": f"{STEPS} steps",
            "global_batch_size": BATCH,
            "micro_batch_size": BATCH,
            "precision": "fp32",
        },
        "schedule": {"kind": "cosine", "peak_lr": PEAK, "final_lr": 0.1 * PEAK, "warmup": f"{STEPS // 10} steps"},
        "validation": {
            "sets": {
                "answers": {"paths": [str(data / "answers.validation")], "role": "domain", "tokens": "32K"},
                "other-answers": {"paths": [str(data / "other")], "role": "domain", "tokens": "16K"},
                "general": {"paths": [str(data / "general.validation")], "role": "general", "tokens": "16K"},
            },
            "eval_interval": {"log_spaced": f"6 per decade to {STEPS // 5} steps", "every": f"{STEPS // 20} steps"},
        },
    }
    if arm.reweighted:
        config["training"]["loss_reweighting"] = {"start": f"{STEPS // 10} steps"}
    if arm.replay:
        sources["general"] = {"paths": [str(data / "general")], "role": "replay"}
        config["data"]["replay_ratio"] = arm.replay
    return config


def rows_of(study: Path, name: str) -> Iterator[CurveRow]:
    """What a run measured, as rows of the results."""
    for record in read_records(study / "runs" / name / "records.jsonl"):
        if record["kind"] == "validation":
            yield name, f"loss {record['set']}", record["step"], record["loss"]


if __name__ == "__main__":
    main()
