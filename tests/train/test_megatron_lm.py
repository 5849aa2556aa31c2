"""Our blend as Megatron-LM takes it: samples like GPTDataset's, global batches like those of our own loop."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import yaml
from megatron.core.datasets.blended_megatron_dataset_builder import BlendedMegatronDatasetBuilder
from megatron.core.datasets.gpt_dataset import GPTDataset, GPTDatasetConfig

from megatron_cpt.config.errors import BadInput
from megatron_cpt.config.load import config_from_dict
from megatron_cpt.data.loader import Slots, TrainingData
from megatron_cpt.planning.plan import make_plan
from megatron_cpt.train.megatron_lm import Sample, datasets_provider
from tests.planning.small_run import settings


def test_global_batches_are_those_of_our_own_loop(tmp_path: Path) -> None:
    sections = settings(tmp_path)
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(sections))
    train, _, none = datasets_provider(tmp_path / "run.yaml")([800, 0, 0])
    assert (len(train), none) == (800, None)  # type: ignore[arg-type]
    config = config_from_dict(sections)
    plan = make_plan(config)
    streams = [plan.inputs.sources[name] for name in plan.blend.sources]
    ours = TrainingData(plan.blend.order, streams, Slots(8, 8, 0, 1), 32, config.run.seed)
    for first in (0, 8, 792):
        [batch] = ours.global_batch(first, torch.device("cpu"))
        theirs = [train[index] for index in range(first, first + 8)]
        for name, expected in (
            ("tokens", batch.tokens),
            ("labels", batch.labels),
            ("loss_mask", batch.loss_mask),
            ("position_ids", batch.positions),
        ):
            got = torch.stack([sample[name] for sample in theirs])
            assert torch.equal(got, expected)
            assert got.dtype == expected.dtype
    assert train[None]["loss_mask"].sum() == 0  # type: ignore[index]


def test_packed_documents_are_refused(tmp_path: Path) -> None:
    sections = settings(tmp_path)
    sections["data"] |= {"packing": "best_fit", "attention": "within_documents"}
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(sections))
    with pytest.raises(BadInput, match="not told where documents begin"):
        datasets_provider(tmp_path / "run.yaml")


def test_weights_of_losses_are_refused(tmp_path: Path) -> None:
    sections = settings(tmp_path)
    next(iter(sections["data"]["sources"].values()))["loss_weight"] = 0.5
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(sections))
    with pytest.raises(BadInput, match="Megatron-LM would divide by the sum of the weights"):
        datasets_provider(tmp_path / "run.yaml")


def test_weights_by_losses_are_refused(tmp_path: Path) -> None:
    sections = settings(tmp_path)
    sections["training"]["loss_reweighting"] = {}
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(sections))
    with pytest.raises(BadInput, match="does not weight sequences by their losses"):
        datasets_provider(tmp_path / "run.yaml")


def test_batches_that_grow_are_refused(tmp_path: Path) -> None:
    sections = settings(tmp_path)
    sections["training"]["batch_size_rampup"] = {"start": 2, "increment": 2, "tokens": 768}
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(sections))
    with pytest.raises(BadInput, match="global batches of one size"):
        datasets_provider(tmp_path / "run.yaml")


def test_samples_are_like_those_of_megatron_cores_dataset(tmp_path: Path) -> None:
    sections = settings(tmp_path)
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(sections))
    train, _, _ = datasets_provider(tmp_path / "run.yaml")([80, 0, 0])
    config = GPTDatasetConfig(
        random_seed=1,
        sequence_length=32,
        blend=([sections["data"]["sources"]["law"]["paths"][0]], None),
        split="1,0,0",
        tokenizer=SimpleNamespace(vocab_size=64, eod=1, unique_identifiers={"class": "test"}),
        reset_position_ids=False,
        reset_attention_mask=False,
        eod_mask_loss=False,
        create_attention_mask=False,
    )
    stock = BlendedMegatronDatasetBuilder(GPTDataset, [80, 0, 0], lambda: True, config).build()[0]

    def described(sample: Sample) -> dict[str, tuple[torch.dtype, torch.Size]]:
        return {name: (tensor.dtype, tensor.shape) for name, tensor in sample.items()}

    assert described(train[0]) == described({name: stock[0][name] for name in train[0]})
    # A blended dataset also names the source, which the training scripts do not read.
    assert set(stock[0]) - set(train[0]) <= {"dataset_id"}


def test_each_evaluation_reads_the_same_sequences(tmp_path: Path) -> None:
    sections = settings(tmp_path)
    sections["validation"]["sets"] = {"web": sections["validation"]["sets"]["web"]}
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(sections))
    _, validation, _ = datasets_provider(tmp_path / "run.yaml")([800, 60, 0], vp_stage=None)
    assert validation is not None
    assert validation.sequences == 20  # type: ignore[attr-defined]
    assert torch.equal(validation[3]["tokens"], validation[43]["tokens"])
    assert not torch.equal(validation[3]["tokens"], validation[4]["tokens"])


def test_every_fault_is_told_when_it_is_called(tmp_path: Path) -> None:
    sections = settings(tmp_path)
    sections["data"]["sources"]["law"]["max_epochs"] = 1
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(sections))
    provider = datasets_provider(tmp_path / "run.yaml", ["run.seed=5"])
    assert provider.is_distributed  # type: ignore[attr-defined]
    with pytest.raises(BadInput, match=r"max_epochs = 1: this run reads"):
        provider([800, 0, 0])
    assert np.isclose(len(provider([400, 0, 0])[0]), 400)  # type: ignore[arg-type]
