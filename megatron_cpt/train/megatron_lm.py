"""Our blend in Megatron-LM's own training script, in place of its BlendedMegatronDatasetBuilder.

`pretrain` of Megatron-LM is given a function from numbers of samples to datasets; examples/megatron_lm has a script.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from torch.utils.data import Dataset

from megatron_cpt.config.errors import Fault, refuse
from megatron_cpt.config.load import load_config
from megatron_cpt.config.units import Duration
from megatron_cpt.data.loader import label_mask, label_masks
from megatron_cpt.data.megatron_dataset import BlendSamples, Sample, ValidationSamples
from megatron_cpt.planning.plan import make_plan

Datasets = tuple[Dataset[Sample], Dataset[Sample] | None, None]


def datasets_provider(path: str | Path, overrides: Sequence[str] = ()) -> Callable[..., Datasets]:
    """A `train_valid_test_datasets_provider` for Megatron-LM that reads the blend of RUN.yaml.

    Of the configuration, `data`, `validation.sets`, `run.seed`, `model.hf` (for its tokenizer's identity) and
    `training.global_batch_size` count, which must be Megatron-LM's `--global-batch-size`, without a ramp; the length
    of the run is Megatron-LM's. The first validation set is given. Every rank builds the datasets; nothing is written.

    Raises BadInput for a `training.batch_size_rampup` and, when called, with every fault of the run.
    """
    config = load_config(str(path), list(overrides))
    if config.training.batch_size_rampup is not None:
        rule = "the datasets for Megatron-LM have global batches of one size."
        refuse([Fault("training.batch_size_rampup", rule, "Take it out, and start Megatron-LM without a ramp.")])

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
        mask = label_mask(config.data, stream, settings.prompt_length_column)
        length = config.data.sequence_length
        return samples, ValidationSamples(stream, mask, length, settings.tokens, validation), None

    # Megatron-LM calls a provider with this mark on every rank; each reads what it is due.
    provide.is_distributed = True  # type: ignore[attr-defined]
    return provide
