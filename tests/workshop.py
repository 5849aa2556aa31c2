"""A small world for tests of whole runs: a tokenizer, a Hugging Face folder, two corpora, a config.

Everything is real and tiny: text with two kinds of words, a byte-level BPE, a Llama of 20k parameters
with random weights written by transformers, datasets written by `prepare`.
"""

import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson
import tokenizers
import torch
import yaml
from tokenizers.models import BPE
from tokenizers.trainers import BpeTrainer
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
)

from megatron_cpt.preparation.job import PrepareSettings
from megatron_cpt.preparation.prepare import prepare

GENERAL = "the river ran over old stones while children sang of harvest and winter and the long road home"
DOMAIN = "def return lambda yield import class self index buffer tensor matrix gradient kernel stack heap"
WORDS = {"general": GENERAL.split(), "domain": DOMAIN.split()}
VOCABULARY = 320
SEQUENCE_LENGTH = 32


@dataclass(frozen=True)
class Workshop:
    """Where the pieces are."""

    folder: Path
    hf: Path
    """Hugging Face folder: config, tokenizer, weights."""

    def prefix(self, corpus: str) -> str:
        """Prefix of a corpus's dataset; its validation part is beside it."""
        return str(self.folder / corpus)

    def hf_with_experts(self) -> Path:
        """Hugging Face folder of a model of the same size with four experts a layer, made when first asked for."""
        folder = self.folder / "hf-experts"
        if not folder.exists():
            write_model_with_experts(folder)
            write_tokenizer_of(self, folder)
        return folder

    @property
    def tasks(self) -> dict[str, Any]:
        """A `tasks` section: multiple-choice questions and texts before and after training."""
        entries = {name: {"path": str(self.folder / f"{name}.jsonl")} for name in ("questions", "texts")}
        return {"files": entries, "groups": {"both": ["first", "second"]}, "micro_batch_size": 3}

    def config(self, run: Path, **sections: dict[str, Any]) -> dict[str, Any]:
        """A run of 12 steps on a blend of both corpora; sections given replace single values of it."""
        values: dict[str, Any] = {
            "run": {"folder": str(run), "seed": 5},
            "model": {"hf": str(self.hf)},
            "data": {
                "sequence_length": SEQUENCE_LENGTH,
                "replay_ratio": 0.3,
                "sources": {
                    "domain": {"paths": [self.prefix("domain")]},
                    "general": {"paths": [self.prefix("general")], "role": "replay"},
                },
            },
            "training": {
                "tokens": "12 steps",
                "global_batch_size": 8,
                "micro_batch_size": 2,
                "precision": "fp32",
            },
            "schedule": {"peak_lr": 2e-3, "warmup": "3 steps", "final_lr": 1e-4},
            "validation": {
                "sets": {
                    name: {"paths": [f"{self.prefix(name)}.validation"], "role": role, "tokens": 9 * SEQUENCE_LENGTH}
                    for name, role in (("domain", "domain"), ("general", "general"))
                },
                "eval_interval": {"at": ["5 steps"]},
            },
            "checkpoint": {"save_interval": "4 steps"},
        }
        for section, given in sections.items():
            values.setdefault(section, {}).update(given)
        return values

    def write_config(self, run: Path, **sections: dict[str, Any]) -> Path:
        """The config as a YAML file beside the run folder."""
        path = run.parent / f"{run.name}.yaml"
        path.write_text(yaml.safe_dump(self.config(run, **sections)))
        return path


def build(folder: Path) -> Workshop:
    """Makes the world in an empty folder; the same in every session."""
    texts = {name: sentences(name, words) for name, words in WORDS.items()}
    workshop = Workshop(folder, folder / "hf")
    write_tokenizer(workshop.hf, [text for lines in texts.values() for text in lines])
    write_model(workshop.hf)
    for name, lines in texts.items():
        corpus = folder / f"{name}.jsonl"
        corpus.write_bytes(b"".join(orjson.dumps({"text": text}) + b"\n" for text in lines))
        prepare([str(corpus)], workshop.hf, folder / name, PrepareSettings(holdout=0.1))
    write_tasks(folder, texts)
    return workshop


def sentences(name: str, words: list[str]) -> list[str]:
    """200 documents of a few dozen words each."""
    draw = random.Random(name)
    return [" ".join(draw.choices(words, k=draw.randint(20, 60))) for _ in range(200)]


def write_tasks(folder: Path, texts: dict[str, list[str]]) -> None:
    """Twelve questions of two tasks, which sentence goes on with which words; and three texts."""
    questions = [
        {
            "id": str(number),
            "task": ("first", "second")[number % 2],
            "question": " ".join(texts["general"][number].split()[:8]),
            "choices": [" ".join(texts[name][number].split()[8 : 11 + number % 3]) for name in WORDS],
            "answer": 0,
        }
        for number in range(12)
    ]
    (folder / "questions.jsonl").write_bytes(b"".join(orjson.dumps(line) + b"\n" for line in questions))
    (folder / "texts.jsonl").write_bytes(b"".join(orjson.dumps({"text": t}) + b"\n" for t in texts["general"][:3]))


def write_tokenizer(folder: Path, texts: list[str]) -> None:
    """A byte-level BPE with one special token."""
    backend = tokenizers.Tokenizer(BPE())
    backend.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = tokenizers.decoders.ByteLevel()
    trainer = BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=["<|endoftext|>"],
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(texts, trainer)
    PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|endoftext|>").save_pretrained(folder)


def write_tokenizer_of(workshop: Workshop, folder: Path) -> None:
    """The workshop's tokenizer in another folder."""
    for path in workshop.hf.glob("*tokenizer*"):
        (folder / path.name).write_bytes(path.read_bytes())


def write_model(folder: Path, **changes: Any) -> None:
    """A Llama with grouped queries and tied embeddings, random but not tiny weights."""
    torch.manual_seed(0)
    settings: dict[str, Any] = {
        "vocab_size": VOCABULARY,
        "hidden_size": 32,
        "intermediate_size": 56,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 64,
        "tie_word_embeddings": True,
        "bos_token_id": None,
        "eos_token_id": 0,
    }
    LlamaForCausalLM(LlamaConfig(**(settings | changes))).save_pretrained(folder)


def write_model_with_experts(folder: Path) -> None:
    """A Qwen3 with four experts a layer, two of them for each token."""
    torch.manual_seed(0)
    settings = Qwen3MoeConfig(
        vocab_size=VOCABULARY,
        hidden_size=32,
        moe_intermediate_size=24,
        num_experts=4,
        num_experts_per_tok=2,
        router_aux_loss_coef=0.01,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        max_position_embeddings=64,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=0,
    )
    Qwen3MoeForCausalLM(settings).save_pretrained(folder)
