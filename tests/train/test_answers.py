"""Only answers are trained on, and the loss is their mean over the whole global batch, however it is divided."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from megatron_cpt.checkpoint.hf_weights import weights_of
from megatron_cpt.config.load import config_from_dict
from megatron_cpt.corpus.indexed import IndexedDataset
from megatron_cpt.corpus.manifest import load_manifest, loss_spans
from megatron_cpt.data.loader import rank_indices
from megatron_cpt.model.build import unwrap
from megatron_cpt.model.forward import loss_step, run_micro_batches, source_sums
from megatron_cpt.parallel import groups
from megatron_cpt.planning.plan import make_plan
from megatron_cpt.preparation.job import PrepareSettings
from megatron_cpt.preparation.prepare import prepare
from megatron_cpt.runs.folder import RunFolder
from megatron_cpt.train.loss_reweighting import reweighted
from megatron_cpt.train.run import Run, assemble
from tests.checkpoint.hf_models import all_tensors, gather_hf_tensors, write_llama
from tests.preparation.chats import TEMPLATES, said, unmarked, write_chat_tokenizer, write_conversations
from tests.ranks import Ranks
from tests.train.runs import records_of, refusal, train

LENGTH, SEQUENCES = 24, 8


@pytest.fixture(scope="module")
def hf(tmp_path_factory: pytest.TempPathFactory, texts: list[str]) -> Path:
    """A model of 600 tokens, its tokenizer, and two datasets beside it: conversations and plain text."""
    folder = write_llama(
        tmp_path_factory.mktemp("answers") / "hf", num_hidden_layers=2, vocab_size=600, max_position_embeddings=96
    )
    write_chat_tokenizer(folder, texts, unmarked(TEMPLATES["headers"]))
    # Answers of very different lengths: some sequences have one token that counts, or none.
    values: list[object] = [said("why " * (7 * n % 40), "so " * (1 + 5 * n % 31), "and?", "x") for n in range(1, 40)]
    chat = write_conversations(folder.parent / "chat.jsonl", values)
    prepare([str(chat)], folder, folder.parent / "chat", PrepareSettings(train_on="responses", holdout=0.2))
    plain = folder.parent / "plain.jsonl"
    plain.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts[:10]))
    prepare([str(plain)], folder, folder.parent / "plain")
    return folder


def settings(hf: Path, run: Path, **sections: Any) -> dict[str, Any]:
    sources = {name: {"paths": [str(hf.parent / name)]} for name in ("chat", "plain")}
    sources["chat"]["weight"] = 3  # type: ignore[assignment]
    values: dict[str, Any] = {
        "run": {"folder": str(run)},
        "model": {"hf": str(hf), "initial_loss_check": {"enabled": False}},
        "data": {"sequence_length": LENGTH, "sources": sources},
        "training": {
            "tokens": "3 steps",
            "global_batch_size": SEQUENCES,
            "micro_batch_size": 1,
            "precision": "fp32",
        },
        "schedule": {"peak_lr": 1e-4, "kind": "constant", "final_lr": 0},
    }
    for section, changes in sections.items():
        values[section] = values.get(section, {}) | changes
    return values


def opened(values: dict[str, Any]) -> Run:
    config = config_from_dict(values)
    folder = RunFolder(config.run.folder)
    folder.create()
    return assemble(config, make_plan(config, groups.world_size()), folder)


def first_step(values: dict[str, Any], temperature: float | None) -> dict[str, Any]:
    """A job: the sequences of the first global batch that this rank reads, with what counts of them; nats and counts of
    each source; gradients under Hugging Face names."""
    run = opened(values)
    for chunk in run.model:
        chunk.zero_grad_buffer()
    batches = list(run.data.global_batch(0, groups.device()))
    slots, length = run.data.slots, run.data.sequence_length
    if temperature is not None:
        batches = reweighted(run.model, batches, slots.micro_batch_size, length, temperature)
    losses = run_micro_batches(
        run.model, iter(batches), slots.micro_batches, slots.micro_batch_size, length, backward=True
    )
    nats, tokens = source_sums(losses, len(run.data.streams), groups.device())
    bare = unwrap(run.model)
    for parameter in (parameter for chunk in bare for parameter in chunk.parameters()):
        parameter.data = parameter.main_grad.clone()
    gradients: dict[str, Tensor] = {}
    for parameter, rule, place in weights_of(bare, run.shape):
        if rule.exported:
            gradients |= gather_hf_tensors(parameter, rule, place, run.shape)
    return {
        "labels": [batch.labels.numpy() for batch in batches],
        "tokens": [batch.tokens.numpy() for batch in batches],
        "loss_mask": [batch.loss_mask.numpy() for batch in batches],
        "sources": [batch.sources.numpy() for batch in batches],
        "document_lengths": [batch.document_lengths for batch in batches],
        "nats": nats.tolist(),
        "counts": tokens.tolist(),
        "gradients": {name: gradient.numpy() for name, gradient in gradients.items()},
    }


def by_themselves(batch: dict[str, Any]) -> list[tuple[int, Tensor, Tensor, Tensor]]:
    """What of a micro batch attends to each other, a row or a document: its source, tokens, labels and mask, [1, n]."""
    count, length = batch["tokens"].shape
    cuts = np.cumsum(batch["document_lengths"] or [length] * count)[:-1]
    sources = [part[0] for part in np.split(np.repeat(batch["sources"], length), cuts)]
    parts = [np.split(batch[name].ravel(), cuts) for name in ("tokens", "labels", "loss_mask")]
    return [
        (int(source), *(torch.from_numpy(part)[None] for part in three))
        for source, *three in zip(sources, *parts, strict=True)
    ]


def as_one_batch(
    hf: Path, found: list[dict[str, Any]], scratch: Path, weights: tuple[float, ...], temperature: float | None
) -> tuple[list[float], dict[str, np.ndarray]]:
    """Plain PyTorch: nats of each source, gradients of their weighted sum over the count of the global batch."""
    names = ("tokens", "labels", "loss_mask", "sources", "document_lengths")
    batches = [{name: rank[name][number] for name in names} for rank in found for number in range(len(rank["tokens"]))]
    model = AutoModelForCausalLM.from_pretrained(hf, dtype=torch.float32, attn_implementation="eager")
    each, counted = [0.0, 0.0], 0.0
    # Of each sequence the source, nats and mask of what attends to each other in it.
    sequences: list[list[tuple[int, Tensor, Tensor]]] = []
    for batch in batches:
        at = 0
        for source, tokens, labels, mask in by_themselves(batch):
            if at % batch["tokens"].shape[1] == 0:
                sequences.append([])
            at += tokens.shape[1]
            nats = torch.nn.functional.cross_entropy(model(tokens).logits.transpose(1, 2), labels, reduction="none")
            sequences[-1].append((source, (nats * mask).sum(), mask.sum()))
    tokens_of = np.array([float(sum(mask for *_, mask in parts)) for parts in sequences])
    sums = [float(sum(nats.detach() for _, nats, _ in parts)) for parts in sequences]
    losses = np.array(sums) / np.maximum(tokens_of, 1)
    factors = np.ones(len(sequences))
    if temperature is not None:  # arXiv:2502.06733: h in [-1, 1], f = min(h + 1, 1)
        low, high = losses[tokens_of > 0].min(), losses[tokens_of > 0].max()
        factors = np.exp(np.minimum((2 * losses - (high + low)) / (high - low) + 1, 1) / temperature)
        factors *= tokens_of.sum() / (factors * tokens_of).sum()
        assert factors[tokens_of > 0].max() > 1.2 * factors[tokens_of > 0].min()
    for factor, parts in zip(factors, sequences, strict=True):
        for source, nats, count in parts:
            (float(factor) * weights[source] * nats).backward()
            each[source] += float(nats.detach())
            counted += float(count)
    for parameter in model.parameters():
        parameter.data.copy_(parameter.grad / counted)
    model.save_pretrained(scratch)
    return each, {name: gradient.numpy() for name, gradient in all_tensors(scratch).items()}


PACKED = {"attention": "within_documents", "packing": "best_fit", "sequence_length": 96}


@pytest.mark.parametrize(
    ("ranks", "changes"),
    [
        (1, {}),
        (1, {"weights": (0.25, 2.0)}),
        (2, {"weights": (0.25, 2.0), "parallel": {"pipeline": 2}}),
        (2, {"weights": (0.0, 1.0), "data": PACKED, "parallel": {"context": 2}}),
        (1, {"training": {"micro_batch_size": 4}}),
        (1, {"temperature": 0.4}),
        (2, {"temperature": 0.4, "weights": (0.25, 2.0)}),
        (2, {"temperature": 1.0, "parallel": {"pipeline": 2}}),
        (2, {"temperature": 0.4, "data": PACKED, "parallel": {"context": 2}}),
        (2, {}),
        (2, {"parallel": {"pipeline": 2}}),
        (2, {"parallel": {"context": 2}}),
        (1, {"data": PACKED}),
        (2, {"data": PACKED, "training": {"micro_batch_size": 2}}),
        (2, {"data": PACKED, "parallel": {"pipeline": 2}}),
        (2, {"data": PACKED, "parallel": {"tensor": 2}}),
        (2, {"data": PACKED, "parallel": {"context": 2}}),
    ],
)
def test_gradients_are_those_of_one_batch_of_all_answers(
    one_rank: Ranks, two_ranks: Ranks, hf: Path, tmp_path: Path, ranks: int, changes: dict[str, Any]
) -> None:
    weights = changes.get("weights", (1.0, 1.0))
    temperature = changes.get("temperature")
    sections = {name: changes[name] for name in changes.keys() - {"weights", "temperature"}}
    values = settings(hf, tmp_path / "run", **sections)
    for source, weight in zip(values["data"]["sources"].values(), weights, strict=True):
        source["loss_weight"] = weight
    found = {1: one_rank, 2: two_ranks}[ranks].call(first_step, values=values, temperature=temperature)
    replicas = found[:1] if "parallel" in changes else found
    counts = np.array([mask.sum() for rank in replicas for part in rank["loss_mask"] for mask in part])
    # A mean of means would differ: by sequence, by micro batch and by rank.
    assert len(counts) == SEQUENCES and counts.min() * 2 < counts.max()
    assert len(replicas) == 1 or replicas[0]["counts"][0] > 0
    nats, expected = as_one_batch(hf, replicas, tmp_path / "gradients", weights, temperature)
    for rank in found:
        assert rank["nats"] == pytest.approx(nats, rel=1e-6)
        assert sum(rank["counts"]) == counts.sum()
    gradients = {name: gradient for rank in found for name, gradient in rank["gradients"].items()}
    assert set(gradients) == set(expected)
    for name, gradient in expected.items():
        assert np.linalg.norm(gradients[name] - gradient) <= 1e-5 * np.linalg.norm(gradient), name


def reached(values: dict[str, Any]) -> list[dict[str, Any]]:
    """A job: of each sequence of the first global batch its source and number there, and which places' last hidden
    states the loss depends on."""
    run = opened(values)
    [model] = unwrap(run.model)
    states: list[Tensor] = []

    def keep(module: torch.nn.Module, given: object, output: Tensor) -> None:
        output.retain_grad()
        states.append(output)  # [s, b, h]

    model.decoder.register_forward_hook(keep)
    located = run.data.order.locate(rank_indices(run.data.slots, 0, run.data.seed).ravel())
    found = []
    for place, batch in enumerate(run.data.global_batch(0, groups.device())):
        output, loss = loss_step(iter([batch]), model)
        loss(output)[0].backward()
        seen = states[-1].grad.abs().sum(-1)[:, 0] > 0
        found.append({"source": located.source[place], "sequence": located.sequence[place], "seen": seen.numpy()})
    return found


def test_no_gradient_comes_from_a_prompt(one_rank: Ranks, hf: Path, tmp_path: Path) -> None:
    """By differentiation: the loss depends on the state at a place if its label is one of an answer."""
    [sequences] = one_rank.call(reached, values=settings(hf, tmp_path / "run"))
    dataset = IndexedDataset(hf.parent / "chat")
    inside = np.zeros(dataset.token_count, np.bool_)
    for begin, end in loss_spans(hf.parent / "chat", load_manifest(hf.parent / "chat")):
        inside[begin:end] = True
    for one in sequences:
        places = (one["sequence"] * LENGTH + 1 + np.arange(LENGTH)) % dataset.token_count
        np.testing.assert_array_equal(one["seen"], inside[places] if one["source"] == 0 else np.ones(LENGTH, np.bool_))
    assert sorted(one["source"] for one in sequences) == [0] * 6 + [1] * 2
    assert 0 < sum(one["seen"].sum() for one in sequences if one["source"] == 0) < 6 * LENGTH


@pytest.mark.ci
@pytest.mark.parametrize("packed", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_a_run_counts_answers_and_resumes_exactly_or_not_at_all(
    one_rank: Ranks, hf: Path, tmp_path: Path, packed: bool
) -> None:
    held_out = {"sets": {"answers": {"paths": [str(hf.parent / "chat.validation")], "tokens": 96}}}
    paths = {}
    for name in ("whole", "pieces"):
        paths[name] = tmp_path / f"{name}.yaml"
        sections = {"checkpoint": {"save_interval": "1 steps"}, "validation": held_out}
        sections |= {"data": PACKED | {"sequence_length": LENGTH}} if packed else {}
        paths[name].write_text(json.dumps(settings(hf, tmp_path / name, **sections)))
    one_rank.call(train, path=paths["whole"])
    one_rank.call(
        train, path=paths["pieces"], overrides=("training.tokens=1 steps", "validation.eval_interval.end=false")
    )
    # The same tokens, of which others count.
    prepare([str(hf.parent / "chat.jsonl")], hf, tmp_path / "all", PrepareSettings(train_on="all", holdout=0.2))
    assert (tmp_path / "all.bin").read_bytes() == (hf.parent / "chat.bin").read_bytes()
    chat = hf.parent / "chat"
    spans = (
        f"data.sources.chat: other tokens of {tmp_path}/all in place of {chat} count in the loss: those of loss_span"
    )
    packing = "step-00000001: data.packing: best_fit before, null now: a run goes on"
    overrides = {f"data.sources.chat.paths=[{tmp_path}/all]": spans}
    for other, told in (overrides | ({"data.packing=null": packing} if packed else {})).items():
        [said_of_it] = one_rank.call(refusal, path=paths["pieces"], overrides=(other,))
        assert told in said_of_it and ".identity" not in said_of_it
    one_rank.call(train, path=paths["pieces"])
    assert records_of(tmp_path / "pieces") == records_of(tmp_path / "whole")
    for record in records_of(tmp_path / "whole", "train"):
        assert 0 < record["source_scored_tokens"]["chat"] < 6 * LENGTH
    [first, *_] = records_of(tmp_path / "whole", "validation")
    assert 0 < first["scored_tokens"] < 96
