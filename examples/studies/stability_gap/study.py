"""The study of the stability gap: the arms of arXiv:2406.14833 Table 1 at equal tokens, with controls, in five seeds.

    python -m examples.studies.stability_gap.study GENERAL.jsonl DOMAIN.jsonl REFERENCE.jsonl [--output STUDY]

Each file holds one JSON object with a `text` a line and may be compressed (.zst). REFERENCE is text of high quality of
the domain; documents of DOMAIN are scored by an n-gram model of it. A Llama of 12 layers of 64 (0.55M parameters
without embeddings) is pretrained on GENERAL for 5,000 steps of 4,096 tokens and continued for 600. The abilities that
are followed are minimal pairs of general text and terms of the domain (questions.py), made from held-out documents.

What a run measured is added to results/curves.csv as soon as it has ended. Called again, also on another machine with
the same texts, the study goes on with the runs that are not there, from the base in results/bases. evaluate.py reads
that file.
"""

import argparse
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson
from tokenizers import Tokenizer

from examples.studies.runs import (
    BATCH,
    SEQUENCE_LENGTH,
    CurveRow,
    call,
    make_bases,
    prepare,
    run_sections,
    train_missing,
)
from examples.studies.stability_gap.questions import RULES, Question, domain_terms, minimal_pairs, term_questions
from megatron_cpt.api import open_dataset
from megatron_cpt.quickstart.base_folder import SMALL_LLAMA
from megatron_cpt.runs.records import read_records

RESULTS = Path(__file__).parent / "results"
MODEL = SMALL_LLAMA | {"hidden_size": 64, "intermediate_size": 176, "head_dim": 16, "num_hidden_layers": 12}
BASE_STEPS, BASE_PEAK = 5000, 4e-3
STEPS, PEAK = 600, 1e-3
TOKENS = STEPS * BATCH * SEQUENCE_LENGTH
"""Of every arm; the domain is as large."""
FROZEN = 5
"""Layers, as in the paper."""
MIXTURE = 0.18
"""Share of general text in a mixture like that of pretraining: what the paper does not replace."""
SEEDS = (1, 2, 3, 4, 5)
CONFLICT = ("full", "re-warmed", "replay-20", "frozen-top", "best-4-epochs", "all-three")
"""Arms whose conflict of gradients is measured, which takes a third of a run."""
PAIRS, TERMS = 100, 400
"""Questions: of each phenomenon, and of terms."""


@dataclass(frozen=True)
class Arm:
    """One way to continue."""

    name: str
    text: str = "whole"
    """`whole`: the domain. `pool`: as many tokens of the best of all there is. `random` or `best`: a part of the
    domain. `general`: general text alone."""
    epochs: int = 1
    """Over the part of the domain, so that every arm has the same tokens."""
    replay: float = 0.0
    """Share of general text."""
    resample: str | None = None
    """`fixed` or `each_epoch`: a mixture, drawn once or anew for each epoch, of the text and general text."""
    frozen: str | None = None
    """`top` or `bottom`."""
    peak: float = PEAK
    """Peak learning rate, after a warm-up of a tenth of the run; then a cosine to a tenth of it."""
    rewarmed: bool = True
    """False: the last rate of the base for the whole run."""


ARMS = [
    Arm("full", rewarmed=False),
    Arm("re-warmed"),
    *(Arm(f"replay-{percent}", replay=percent / 100) for percent in (10, 20, 30)),
    *(Arm(f"frozen-{end}", frozen=end) for end in ("top", "bottom")),
    *(Arm(f"random-{2**at}-epochs", "random", 2**at) for at in (1, 2, 3)),
    *(Arm(f"best-{2**at}-epochs", "best", 2**at) for at in (1, 2, 3)),
    Arm("best-once", "pool"),
    Arm("mixture-once", replay=MIXTURE),
    *(Arm(f"mixture-{how}", "random", 4, MIXTURE, how) for how in ("fixed", "each_epoch")),
    Arm("all-three", "best", 4, MIXTURE, "each_epoch"),
    *(Arm(f"peak-{factor:g}", peak=factor * PEAK) for factor in (0.3, 3)),
    Arm("general-alone", "general"),
]


def main() -> None:
    """Text, questions, the base, then every run that is not in the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("general", "domain", "reference"):
        parser.add_argument(name, type=Path, help="JSON lines; docs/claims.md names those of the results")
    parser.add_argument("--output", type=Path, default=Path("study"), metavar="STUDY")
    parser.add_argument("--results", type=Path, default=RESULTS, metavar="FOLDER")
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time, one thread each (default: 2)")
    args = parser.parse_args()
    study = args.output
    (study / "configs").mkdir(parents=True, exist_ok=True)
    corpora = {"general": args.general, "domain": args.domain, "reference": args.reference}
    prepare(study, corpora, ("general", "domain"), MODEL)
    select_parts(study)
    write_questions(study)
    make_bases(study, base_config(study), {"base": BASE_STEPS}, args.results)
    curves, base = args.results / "curves.csv", args.results / "bases/base"
    configs = {run_name(arm, seed): run_config(study, base, arm, seed) for seed in SEEDS for arm in ARMS}
    train_missing(study, curves, configs, args.jobs, rows_of)


def run_name(arm: Arm, seed: int) -> str:
    """Of its run folder."""
    return f"{arm.name}-seed-{seed}"


def part_name(text: str, epochs: int, seed: int) -> str:
    """Of a selection of the domain; a random part differs from seed to seed."""
    return f"{text}-{epochs}" + f"-seed-{seed}" * (text == "random")


def select_parts(study: Path) -> None:
    """The domain, its parts, and the best of all there is."""
    data = study / "data"
    if not (data / "domain.ngram.npy").exists():
        call("score", str(data / "domain"), "--by", "ngram", "--reference", str(data / "reference"))
    whole = data / "whole"
    _select(data / "domain", whole, TOKENS, "random")
    _select(data / "domain", data / "pool", TOKENS, "best")
    for arm in ARMS:
        for seed in SEEDS:
            if arm.text in ("random", "best"):
                part = data / part_name(arm.text, arm.epochs, seed)
                _select(f"{whole}.selection.json", part, TOKENS // arm.epochs, arm.text, seed)


def _select(source: Path | str, target: Path, tokens: int, how: str, seed: int = 0) -> None:
    if target.with_name(f"{target.name}.selection.json").exists():
        return
    chosen = ("--keep", "random") if how == "random" else ("--by", "ngram", "--keep", "lowest")
    call("select", str(source), "--tokens", str(tokens), *chosen, "--seed", str(seed), "--output", str(target))


def write_questions(study: Path) -> None:
    """STUDY/pairs.jsonl and STUDY/terms.jsonl, from documents that were held out."""
    if (study / "terms.jsonl").exists():
        return
    texts = {
        name: list(texts_of(study, name)) for name in ("general", "general.validation", "domain", "domain.validation")
    }
    write_lines(study / "pairs.jsonl", minimal_pairs(texts["general.validation"], PAIRS))
    terms = domain_terms(texts["domain"], texts["general"])
    write_lines(study / "terms.jsonl", term_questions(texts["domain.validation"], terms, TERMS))


def texts_of(study: Path, name: str) -> Iterator[str]:
    """The documents of a dataset as text."""
    tokenizer = Tokenizer.from_file(str(study / "base-config/tokenizer.json"))
    dataset = open_dataset(study / "data" / name)
    for number in range(len(dataset.document_bounds) - 1):
        yield tokenizer.decode(dataset.document(number).tolist())


def write_lines(path: Path, questions: Iterable[Question]) -> None:
    """A file of tasks."""
    path.write_bytes(b"".join(orjson.dumps(question) + b"\n" for question in questions))


def base_config(study: Path) -> dict[str, Any]:
    """The pretraining."""
    config = common(study, "base", {"general": {"paths": [str(study / "data/general")]}}, BASE_STEPS, 1234)
    config["model"] = {"hf": str(study / "base-config"), "weights": "random"}
    config["schedule"] = {
        "kind": "cosine",
        "peak_lr": BASE_PEAK,
        "final_lr": 0.1 * BASE_PEAK,
        "warmup": f"{BASE_STEPS // 50} steps",
    }
    config["validation"]["weight_updates"] = False
    config["validation"]["eval_interval"] = config["tasks"]["eval_interval"] = {"every": f"{BASE_STEPS // 5} steps"}
    return config


def run_config(study: Path, base: Path, arm: Arm, seed: int) -> dict[str, Any]:
    """One continuation of a base."""
    config = common(study, run_name(arm, seed), sources_of(study, arm, seed), STEPS, 100 + seed)
    config["model"] = {"hf": str(base), "frozen": {arm.frozen: FROZEN} if arm.frozen else {}}
    if arm.name in CONFLICT:
        config["validation"]["gradient_conflict"] = ["general", "domain"]
    if arm.replay and not arm.resample:
        config["data"]["replay_ratio"] = arm.replay
    config["schedule"] = {"kind": "constant", "peak_lr": 0.1 * BASE_PEAK}
    if arm.rewarmed:
        warmup = f"{STEPS // 10} steps"
        config["schedule"] = {"kind": "cosine", "peak_lr": arm.peak, "final_lr": 0.1 * arm.peak, "warmup": warmup}
    return config


def sources_of(study: Path, arm: Arm, seed: int) -> dict[str, Any]:
    """The `data.sources` of an arm."""
    data = study / "data"
    general: dict[str, Any] = {"paths": [str(data / "general")], "role": "replay"}
    if arm.text == "general":
        return {"general": general | {"role": "domain"}}
    name = part_name(arm.text, arm.epochs, seed) if arm.text in ("random", "best") else arm.text
    domain: dict[str, Any] = {"paths": [str(data / f"{name}.selection.json")]}
    if arm.resample:
        for source, share in ((domain, 1 - arm.replay), (general, arm.replay)):
            sample = {"tokens": round(share * TOKENS / arm.epochs), "resample": arm.resample}
            source |= {"weight": share, "sample_per_epoch": sample}
    return {"domain": domain, "general": general} if arm.replay else {"domain": domain}


def common(study: Path, name: str, sources: dict[str, Any], steps: int, seed: int) -> dict[str, Any]:
    """What all runs share."""
    sets = {
        name: {"paths": [str(study / f"data/{name}.validation")], "role": name, "tokens": "24K"}
        for name in ("general", "domain")
    }
    files = {
        "pairs": {"path": str(study / "pairs.jsonl"), "metric": "accuracy"},
        "terms": {"path": str(study / "terms.jsonl"), "metric": "accuracy", "role": "domain"},
    }
    tenth = max(1, steps // 10)
    early = f"{2 * tenth} steps"
    return run_sections(study, name, sources, steps, seed) | {
        "validation": {
            "sets": sets,
            "eval_interval": {
                "log_spaced": f"6 per decade to {early}",
                "every": f"{max(1, tenth // 2)} steps",
            },
            "weight_updates": True,
        },
        "tasks": {
            "files": files,
            "groups": {"pairs": list(RULES)},
            "micro_batch_size": 64,
            "eval_interval": {"log_spaced": f"3 per decade to {early}", "every": f"{tenth} steps"},
        },
    }


def rows_of(study: Path, name: str) -> Iterator[CurveRow]:
    """What a run measured, as rows of the results."""
    for record in read_records(study / "runs" / name / "records.jsonl"):
        for series, value in series_of(record):
            if value is not None:
                yield name, series, record["step"], value


def series_of(record: dict[str, Any]) -> Iterator[tuple[str, float | None]]:
    """The numbers of a record that the study keeps, by name."""
    match record["kind"]:
        case "validation":
            yield f"loss {record['set']}", record["loss"]
            yield f"bits per byte {record['set']}", record["bits_per_byte"]
        case "task":
            yield f"accuracy {record['task']}", record["score"]
        case "task_group":
            yield f"accuracy {record['group']}", record["score"]
        case "weights":
            yield "bottom over top, mean relative", record["mean_relative"]["bottom_over_top"]
            yield "bottom over top, norms", record["norm_ratio"]["bottom_over_top"]
        case "gradients":
            for part in ("all", "bottom", "top"):
                yield f"cosine {record['set']} {part}", record["cosine"][part]
            yield f"gradient norm {record['set']}", record["gradient_norm"]["all"]
            yield f"predicted change {record['set']}", record["predicted_change"]
            yield f"change {record['set']}", record["change"]


if __name__ == "__main__":
    main()
