"""`attention: within_documents`: no token sees another document, whatever the layout."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from megatron_cpt.checkpoint.hf_weights import load_hf_weights
from megatron_cpt.config.load import config_from_dict
from megatron_cpt.config.schema import RunConfig
from megatron_cpt.data.loader import Batch, lengths_between, make_batch
from megatron_cpt.families.shape import read_shape
from megatron_cpt.model.attention import Piece, pieces_of
from megatron_cpt.model.build import ModelOptions, build_model
from megatron_cpt.model.forward import loss_step, own_tokens
from megatron_cpt.parallel import groups
from tests.checkpoint.hf_models import write_model
from tests.families.folders import MODELS
from tests.ranks import Ranks

LENGTH = 24
STARTS = [np.array([0, 5, 17]), np.array([3, 4, 20])]  # the second sequence begins inside a document
DOCUMENTS = ((0, 0, 5), (0, 5, 17), (0, 17, 24), (1, 0, 3), (1, 3, 4), (1, 4, 20), (1, 20, 24))
"""Sequence, begin and end of each document."""


def batch_of(windows: Tensor, starts: list[np.ndarray] | None) -> Batch:
    count = len(windows)
    scored, sources = np.full(count, windows.shape[1] - 1), np.zeros(count, dtype=np.int64)
    return make_batch(windows.numpy(), scored, sources, groups.device(), starts)


def settings(folder: Path, recompute: str = "none", context: int = 1) -> RunConfig:
    return config_from_dict(
        {
            "run": {"folder": "run"},
            "model": {"hf": str(folder)},
            "data": {
                "sequence_length": LENGTH,
                "sources": {"text": {"paths": ["text"]}},
                "attention": "within_documents",
            },
            "parallel": {"context": context},
            "training": {"tokens": "1 steps", "global_batch_size": 1, "precision": "fp32", "recompute": recompute},
            "schedule": {"peak_lr": 1e-5},
            # The balance of experts is a loss over all tokens: no token sees another through it.
            "megatron": {"transformer": {"moe_aux_loss_coeff": 0.0}},
        }
    )


def look_around(folder: Path, windows: Tensor, recompute: str) -> dict[str, np.ndarray]:
    """A job: the nats of all labels, of each document alone, and which embeddings each document's loss depends on."""
    config = settings(folder, recompute)
    groups.init_model_parallel(config.parallel)
    shape = read_shape(folder)
    (model,) = build_model(shape, ModelOptions.of_run(config))
    load_hf_weights([model], shape, folder)
    embedded: list[Tensor] = []

    def keep(module: torch.nn.Module, given: object, output: Tensor) -> None:
        output.retain_grad()
        embedded.append(output)  # one row of all documents, [b s, 1, h]

    model.embedding.register_forward_hook(keep)
    seen = np.zeros((len(DOCUMENTS), len(windows), LENGTH), dtype=bool)
    alone = []
    for number, (row, begin, end) in enumerate(DOCUMENTS):
        nats, _ = loss_step(iter([batch_of(windows, STARTS)]), model)
        nats[row, begin:end].sum().backward()
        seen[number] = embedded[-1].grad.view(len(windows), LENGTH, -1).abs().sum(-1).numpy() > 0
        by_itself, _ = loss_step(iter([batch_of(windows[row : row + 1, begin : end + 1], None)]), model)
        alone.append(by_itself[0].detach().numpy())
    crossing, _ = loss_step(iter([batch_of(windows, None)]), model)
    return {
        "nats": nats.detach().numpy(),
        "alone": np.concatenate(alone),
        "seen": seen,
        "crossing": crossing.detach().numpy(),
    }


@pytest.mark.parametrize(
    ("kind", "recompute"),
    [
        ("llama", "none"),
        ("qwen3", "full"),
        ("qwen3_moe", "selective"),
        ("mistral", "none"),
        ("ministral3", "none"),
        ("smollm3", "none"),
        ("gpt_neox_yarn", "none"),
        ("deepseek_v3", "none"),
        ("gpt_oss", "none"),
        ("llama4_text", "none"),
        ("qwen3_next", "none"),
        ("qwen3_next_tied", "full"),
    ],
)
def test_no_token_sees_another_document(one_rank: Ranks, tmp_path: Path, kind: str, recompute: str) -> None:
    folder = write_model(tmp_path / "hf", MODELS[kind])
    windows = torch.randint(101, (len(STARTS), LENGTH + 1), generator=torch.Generator().manual_seed(3))
    (found,) = one_rank.call(look_around, folder=folder, windows=windows, recompute=recompute)
    for seen, (row, begin, end) in zip(found["seen"], DOCUMENTS, strict=True):
        own = np.zeros_like(seen)
        own[row, begin:end] = True
        np.testing.assert_array_equal(seen, own)
    # Each document's losses are those of the document by itself, and not those of attention across documents.
    np.testing.assert_allclose(found["nats"].ravel(), found["alone"], rtol=0, atol=2e-6)
    assert np.abs(found["nats"] - found["crossing"])[0, 5:].max() > 1e-3
    np.testing.assert_allclose(found["nats"][0, :5], found["crossing"][0, :5], rtol=0, atol=2e-6)


def count_waits(folder: Path, windows: Tensor) -> int:
    """A job: how often a forward pass asks for the numbers of a tensor, for each of which a GPU would be waited for."""
    config = settings(folder)
    groups.init_model_parallel(config.parallel)
    (model,) = build_model(read_shape(folder), ModelOptions.of_run(config))
    batch, waits = batch_of(windows, STARTS), 0

    def counted(read: Any) -> Any:
        def reading(tensor: Tensor) -> Any:
            nonlocal waits
            waits += 1
            return read(tensor)

        return reading

    with pytest.MonkeyPatch.context() as patch:
        for name in ("tolist", "item", "__bool__", "__int__"):
            patch.setattr(Tensor, name, counted(getattr(Tensor, name)))
        loss_step(iter([batch]), model)
    return waits


def test_documents_apart_cost_no_wait_in_a_layer(one_rank: Ranks, tmp_path: Path) -> None:
    folder = write_model(tmp_path / "hf", MODELS["llama"])
    windows = torch.randint(101, (len(STARTS), LENGTH + 1))
    assert one_rank.call(count_waits, folder=folder, windows=windows) == [0]


def look_around_together(folder: Path, windows: Tensor, recompute: str, context: int) -> dict[str, np.ndarray]:
    """A job: what a rank that shares the sequences has of them, its nats, and which of its embeddings each document's
    loss depends on."""
    config = settings(folder, recompute, context)
    groups.init_model_parallel(config.parallel)
    shape = read_shape(folder)
    (model,) = build_model(shape, ModelOptions.of_run(config))
    load_hf_weights([model], shape, folder)
    batch = own_tokens(batch_of(windows, STARTS))
    embedded: list[Tensor] = []

    def keep(module: torch.nn.Module, given: object, output: Tensor) -> None:
        output.retain_grad()
        embedded.append(output)  # one row of this rank's parts, [b s / c, 1, h]

    model.embedding.register_forward_hook(keep)
    seen = np.zeros((len(DOCUMENTS), *batch.tokens.shape), dtype=bool)
    for number, (row, begin, end) in enumerate(DOCUMENTS):
        nats, _ = loss_step(iter([batch]), model)
        own = (begin <= batch.positions[row]) & (batch.positions[row] < end)
        nats[row, own].sum().backward()  # of no label, on a rank that has nothing of the document
        seen[number] = embedded[-1].grad.view(*batch.tokens.shape, -1).abs().sum(-1).numpy() > 0
    return {"places": batch.positions[0].numpy(), "nats": nats.detach().numpy(), "seen": seen}


@pytest.mark.parametrize(
    ("kind", "recompute", "context"),
    [
        ("llama", "none", 2),
        ("gpt_neox", "full", 2),
        ("qwen3_moe", "selective", 2),
        ("qwen2_yarn", "none", 4),
        ("ministral3", "none", 2),
        ("mistral", "none", 2),
        ("gemma2", "none", 2),
        ("gemma3", "none", 4),
        ("olmo3", "none", 2),
        ("gpt_oss", "none", 2),
        ("llama4_text", "full", 4),
    ],
)
def test_no_token_sees_another_document_in_sequences_that_ranks_share(
    request: pytest.FixtureRequest, one_rank: Ranks, tmp_path: Path, kind: str, recompute: str, context: int
) -> None:
    folder = write_model(tmp_path / "hf", MODELS[kind])
    windows = torch.randint(101, (len(STARTS), LENGTH + 1), generator=torch.Generator().manual_seed(3))
    (alone,) = one_rank.call(look_around, folder=folder, windows=windows, recompute=recompute)
    pool: Ranks = request.getfixturevalue({2: "two_ranks", 4: "four_ranks"}[context])
    found = pool.call(look_around_together, folder=folder, windows=windows, recompute=recompute, context=context)
    places = np.concatenate([part["places"] for part in found])
    assert sorted(places) == list(range(LENGTH))
    nats, seen = np.zeros_like(alone["nats"]), np.zeros_like(alone["seen"])
    nats[:, places] = np.concatenate([part["nats"] for part in found], axis=1)
    seen[..., places] = np.concatenate([part["seen"] for part in found], axis=-1)
    np.testing.assert_array_equal(seen, alone["seen"])
    np.testing.assert_allclose(nats, alone["nats"], rtol=0, atol=5e-6)


def test_pieces_of_documents() -> None:
    # Two sequences of 24 tokens in four parts of 6 each; documents begin at 0, 5, 17, 24, 27, 28 and 44.
    lengths = (5, 12, 7, 3, 1, 16, 4)
    assert pieces_of(lengths, LENGTH, 2, (0, 3)) == (
        Piece(0, 0, 5),
        Piece(5, 5, 6),
        Piece(17, 18, 24),
        Piece(24, 24, 27),
        Piece(27, 27, 28),
        Piece(28, 28, 30),
        Piece(28, 42, 44),
        Piece(44, 44, 48),
    )
    assert pieces_of(lengths, LENGTH, 2, (1, 2)) == (
        Piece(5, 6, 12),
        Piece(5, 12, 17),
        Piece(17, 17, 18),
        Piece(28, 30, 36),
        Piece(28, 36, 42),
    )
    assert pieces_of([LENGTH], LENGTH, 2, (0, 3)) == (Piece(0, 0, 6), Piece(0, 18, 24))


def test_lengths_of_documents_in_sequences_laid_end_to_end() -> None:
    assert lengths_between(STARTS, LENGTH) == (5, 12, 7, 3, 1, 16, 4)
    assert lengths_between([np.array([0, LENGTH])], LENGTH) == (LENGTH,)
    assert lengths_between([np.array([], dtype=np.int64)], LENGTH) == (LENGTH,)
