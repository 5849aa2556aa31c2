"""A whole run on disk, small: a model folder with a tokenizer, two sources, two validation sets, a config."""

import json
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer as Backend
from tokenizers.models import WordLevel

from megatron_cpt.config.errors import BadInput
from megatron_cpt.config.load import config_from_dict
from megatron_cpt.corpus.indexed import IndexedWriter
from megatron_cpt.corpus.manifest import Manifest, write_manifest
from megatron_cpt.planning.inputs import open_inputs
from megatron_cpt.planning.plan import checked_blend
from megatron_cpt.tokenizer.tokenizer import Tokenizer

VOCABULARY = 64
LLAMA = {
    "model_type": "llama",
    "num_hidden_layers": 2,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": VOCABULARY,
    "max_position_embeddings": 128,
}


SIZES_OF_70M = {"num_hidden_layers": 18, "hidden_size": 512, "intermediate_size": 2048}
"""A Llama of as many parameters as Pythia-70m has."""


def write_model(folder: Path, words: str = "w", **changes: Any) -> Path:
    """A Hugging Face folder without weights: planning reads none."""
    folder.mkdir(parents=True)
    vocabulary = {"<unk>": 0, "</s>": 1} | {f"{words}{number}": number for number in range(2, VOCABULARY)}
    Backend(WordLevel(vocabulary, unk_token="<unk>")).save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": "</s>"}))
    (folder / "config.json").write_text(json.dumps({**LLAMA, **changes}))
    return folder


def write_dataset(prefix: Path, tokens: int, tokenizer: Path | None, vocabulary_size: int = VOCABULARY) -> str:
    """A dataset of one document of ids drawn from its name, made by a tokenizer or (None) elsewhere."""
    with IndexedWriter(prefix, np.uint16) as writer:
        if tokens:
            drawn = np.random.default_rng(sum(prefix.name.encode()))
            writer.add(drawn.integers(2, VOCABULARY, tokens))
    if tokenizer is not None:
        made_with = Tokenizer.load(tokenizer)
        manifest = Manifest(
            documents=writer.documents,
            tokens=tokens,
            dtype="uint16",
            vocabulary_size=vocabulary_size,
            tokenizer=made_with.identity,
            tokenizer_folder=str(tokenizer),
            data_sha256=writer.data_sha256,
            index_sha256=writer.index_sha256,
        )
        write_manifest(prefix, manifest)
    return str(prefix)


def settings(folder: Path) -> dict[str, Any]:
    """The sections of a run config whose files lie in `folder`, written here."""
    model = write_model(folder / "model")
    return {
        "run": {"folder": str(folder / "run"), "seed": 7},
        "model": {"hf": str(model)},
        "data": {
            "sequence_length": 32,
            "replay_ratio": 0.25,
            "sources": {
                "law": {"paths": [write_dataset(folder / "law", 10_000, model)]},
                "web": {"paths": [write_dataset(folder / "web", 50_000, model)], "role": "replay"},
            },
        },
        "training": {"tokens": "100 steps", "global_batch_size": 8, "micro_batch_size": 2},
        "schedule": {"peak_lr": 1e-3},
        "validation": {
            "sets": {
                "law": {"paths": [write_dataset(folder / "law.validation", 1000, model)], "role": "domain"},
                "web": {"paths": [write_dataset(folder / "web.validation", 1000, model)], "tokens": 640},
            },
            "eval_interval": {"log_spaced": "2 per decade to 100 steps", "every": "50 steps"},
        },
    }


def faults_of(sections: dict[str, Any], world_size: int | None = 1) -> list[str]:
    """All that is wrong with a run, in words."""
    config = config_from_dict(sections)
    try:
        checked_blend(config, world_size, open_inputs(config))
    except BadInput as error:
        return [str(fault) for fault in error.faults]
    return []
