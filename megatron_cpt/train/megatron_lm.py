"""Our blend in Megatron-LM's own training script, in place of its BlendedMegatronDatasetBuilder.

`pretrain` of Megatron-LM is given a function from numbers of samples to datasets; examples/megatron_lm has a script.
The datasets give samples as its GPTDataset does. Its sampler gives rank r of a micro batch the r-th of consecutive
samples. So that a rank is not tied to a source, the samples of each global batch are dealt here, as data/loader.py
deals them in our own loop: the same sequences make up the same global batch, whichever loop reads them.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from megatron_cpt.config.errors import Fault, refuse
from megatron_cpt.config.load import load_config
from megatron_cpt.config.units import Duration
from megatron_cpt.corpus.label_mask import LabelMask, label_mask
from megatron_cpt.corpus.stream import TokenStream
from megatron_cpt.data.loader import Slots, label_masks, rank_indices, window
from megatron_cpt.mixture.order import SampleOrder
from megatron_cpt.planning.plan import make_plan

Sample = dict[str, Tensor]
"""tokens, labels, position_ids (int64 [s]) and loss_mask (float32 [s])."""
Datasets = tuple[Dataset[Sample], Dataset[Sample] | None, None]


def datasets_provider(path: str | Path, overrides: Sequence[str] = ()) -> Callable[..., Datasets]:
    """A `train_valid_test_datasets_provider` for Megatron-LM that reads the blend of RUN.yaml.

    Of the configuration, `data`, `validation.sets`, `run.seed`, `model.hf` (for its tokenizer's identity) and
    `training.global_batch_size` count, which must be Megatron-LM's `--global-batch-size`, without a ramp; the length
    of the run is Megatron-LM's. The first validation set is given. Every rank builds the datasets; nothing is written.

    Raises BadInput for a `training.batch_size_rampup` or `data.packing` and, when called, with every fault of the run.
    """
    config = load_config(str(path), list(overrides))
    if config.training.batch_size_rampup is not None:
        rule = "the datasets for Megatron-LM have global batches of one size."
        refuse([Fault("training.batch_size_rampup", rule, "Take it out, and start Megatron-LM without a ramp.")])
    if config.data.packing is not None:
        rule = "Megatron-LM is not told where documents begin, and would let them see each other."
        refuse([Fault(f"data.packing = {config.data.packing}", rule, "Take it out.")])

    if config.training.loss_reweighting is not None:
        rule = "Megatron-LM does not weight sequences by their losses."
        refuse([Fault("training.loss_reweighting", rule, "Take it out.")])

    for name, source in config.data.sources.items():
        if source.loss_weight != 1:
            rule = "Megatron-LM would divide by the sum of the weights in place of the number of tokens."
            refuse([Fault(f"data.sources.{name}.loss_weight = {source.loss_weight:g}", rule, "Take it out.")])

    def provide(train_val_test_num_samples: Sequence[int], vp_stage: int | None = None) -> Datasets:
        train, validation, _ = train_val_test_num_samples
        tokens = Duration(train * config.data.sequence_length)
        plan = make_plan(replace(config, training=replace(config.training, tokens=tokens)))
        samples = BlendSamples(
            plan.blend.order,
            [plan.inputs.sources[name] for name in plan.blend.sources],
            label_masks(config.data, plan.inputs.sources, plan.blend.sources),
            plan.blend.total_sequences,
            config.training.global_batch_size,
            config.run.seed,
        )
        sets = list(config.validation.sets.items())
        if not sets or not validation:
            return samples, None, None
        name, settings = sets[0]
        stream = plan.inputs.validation_sets[name]
        mask = label_mask(config.data, stream, settings.loss_mask_column)
        length = config.data.sequence_length
        return samples, ValidationSamples(stream, mask, length, settings.tokens, validation), None

    # Megatron-LM calls a provider with this mark on every rank; each reads what it is due.
    provide.is_distributed = True  # type: ignore[attr-defined]
    return provide


class BlendSamples(Dataset[Sample]):
    """The training sequences of a run, by their place in it."""

    def __init__(
        self,
        order: SampleOrder,
        streams: Sequence[TokenStream],
        label_masks: Sequence[LabelMask],
        samples: int,
        global_batch_size: int,
        seed: int,
    ) -> None:
        """A run of `samples` sequences in global batches of one size; the seed is that of the run."""
        self.order = order
        self.label_masks = label_masks
        self.streams = streams
        self.samples = samples
        self.seed = seed
        self._slots = Slots(global_batch_size, global_batch_size, 0, 1)

    def __len__(self) -> int:
        return self.samples

    def __getitem__(self, index: int | None) -> Sample:
        """The sample at a place of the run; None: one that counts nowhere, as Megatron-LM asks for to fill a batch."""
        first, place = divmod(index or 0, self._slots.global_batch_size)
        [indices] = rank_indices(self._slots, first * self._slots.global_batch_size, self.seed)
        located = self.order.locate(indices[place : place + 1])
        source, sequence = int(located.source[0]), int(located.sequence[0])
        mask = self.label_masks[source] if index is not None else None
        return _sample(self.streams[source], sequence, self.order.sequence_length, mask)


class ValidationSamples(Dataset[Sample]):
    """The whole sequences of a validation set, again and again: each evaluation reads the same ones.

    For that, Megatron-LM's `--eval-iters` times its global batch should be a multiple of `sequences`.
    """

    def __init__(
        self, stream: TokenStream, label_mask: LabelMask, sequence_length: int, tokens: int | None, samples: int
    ) -> None:
        """`tokens`: budget of the set, None for all of it; `samples`: how many are asked for in the whole run."""
        self.stream = stream
        self.label_mask = label_mask
        self.sequence_length = sequence_length
        self.samples = samples
        whole = (stream.tokens - 1) // sequence_length
        self.sequences = whole if tokens is None else min(whole, max(1, tokens // sequence_length))
        """Sequences of the set."""

    def __len__(self) -> int:
        return self.samples

    def __getitem__(self, index: int | None) -> Sample:
        """The sample at a place; None: one that counts nowhere."""
        mask = self.label_mask if index is not None else None
        return _sample(self.stream, (index or 0) % self.sequences, self.sequence_length, mask)


def _sample(stream: TokenStream, sequence: int, length: int, mask: LabelMask | None) -> Sample:
    """A sample of a stream; without a mask it counts nowhere."""
    text = window(stream, sequence, length)
    counted = np.zeros(length) if mask is None else mask.loss_mask(stream, sequence * length + 1, text[1:])
    return {
        "tokens": torch.from_numpy(text[:-1].copy()),
        "labels": torch.from_numpy(text[1:].copy()),
        "loss_mask": torch.from_numpy(counted.astype(np.float32)),
        "position_ids": torch.arange(length),
    }
