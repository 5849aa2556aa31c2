"""A model that was really pretrained: in, its known losses, some steps of training on another domain, and out."""

import io
from pathlib import Path

import orjson
import pytest
import torch
import yaml
import zstandard
from tokenizers import Tokenizer
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import AutoModelForCausalLM

from megatron_cpt.checkpoint.convert import load_model, megatron_logits
from megatron_cpt.config.schema import ParallelSettings
from megatron_cpt.families.shape import read_shape
from megatron_cpt.parallel import groups
from megatron_cpt.preparation.job import PrepareSettings
from megatron_cpt.preparation.prepare import prepare
from tests.ranks import Ranks
from tests.texts import SHARED
from tests.train.runs import train

STORIES = SHARED / "model_stories260K" / "hf"
BOS, LENGTH = 1, 512
# Nats per token of the first 512 tokens of 20 documents, as transformers and llama2.c's own arithmetic give them.
KNOWN = {"general_wikitext2_test_raw": 4.5737, "med_pubmedqa_abstracts": 4.6749}

pytestmark = pytest.mark.skipif(not STORIES.is_dir(), reason="the real model stories260K is not on this machine")


def texts_of(corpus: str, count: int) -> list[str]:
    """The first documents of a corpus."""
    with (SHARED / corpus / f"{corpus}.jsonl.zst").open("rb") as file:
        lines = io.TextIOWrapper(zstandard.ZstdDecompressor().stream_reader(file), encoding="utf-8")
        return [orjson.loads(line)["text"] for _, line in zip(range(count), lines, strict=False)]


def opening_tokens(corpus: str) -> Tensor:
    """The first tokens of 20 documents behind BOS, [20, 512]."""
    tokenizer = Tokenizer.from_file(str(STORIES / "tokenizer.json"))
    encoded = [tokenizer.encode(text, add_special_tokens=False).ids for text in texts_of(corpus, 20)]
    return torch.tensor([[BOS, *ids][:LENGTH] for ids in encoded])


def mean_loss(logits: Tensor, tokens: Tensor) -> float:
    """Nats per token."""
    return cross_entropy(logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten()).item()


def loss_of_ours(tokens: Tensor) -> float:
    """Job: the loss under Megatron-Core."""
    groups.init_model_parallel(ParallelSettings())
    shape = read_shape(STORIES)
    logits = megatron_logits(load_model(STORIES, shape, "fp32"), shape, tokens)
    assert logits is not None
    return mean_loss(logits, tokens)


@pytest.mark.parametrize("corpus", KNOWN)
def test_its_losses_are_the_known_ones(one_rank: Ranks, corpus: str) -> None:
    assert one_rank.call(loss_of_ours, tokens=opening_tokens(corpus)) == [pytest.approx(KNOWN[corpus], abs=1e-4)]


def test_it_learns_another_domain_and_transformers_reads_what_comes_out(one_rank: Ranks, tmp_path: Path) -> None:
    corpus = tmp_path / "medicine.jsonl"
    texts = texts_of("med_pubmedqa_abstracts", 220)[20:]
    corpus.write_bytes(b"".join(orjson.dumps({"text": text}) + b"\n" for text in texts))
    prepare([str(corpus)], STORIES, tmp_path / "medicine", PrepareSettings(bos="always"))
    run = {
        "run": {"folder": str(tmp_path / "run")},
        "model": {"hf": str(STORIES)},
        "data": {"sequence_length": 256, "sources": {"medicine": {"paths": [str(tmp_path / "medicine")]}}},
        "training": {"tokens": "8 steps", "global_batch_size": 8, "micro_batch_size": 8, "precision": "fp32"},
        "schedule": {"peak_lr": 2e-3, "warmup": "2 steps"},
        "checkpoint": {"export_hf": {"end": True}},
    }
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(run))
    assert one_rank.call(train, path=tmp_path / "run.yaml") == [0]
    check = orjson.loads((tmp_path / "run/initial_loss_check.json").read_bytes())
    assert check["ours"] == pytest.approx(check["losses"], abs=1e-5)
    tokens = opening_tokens("med_pubmedqa_abstracts")
    with torch.no_grad():
        trained = AutoModelForCausalLM.from_pretrained(tmp_path / "run/hf").eval()
        assert mean_loss(trained(tokens).logits, tokens) < KNOWN["med_pubmedqa_abstracts"] - 1
