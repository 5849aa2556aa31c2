"""Every fault of a run, found before anything is paid for and told at once.

What a config alone can get wrong is in config/faults.py; here it meets the model folder, the datasets and the
blend. `plan` and `train` refuse the same things in the same words.
"""

import importlib.util
from collections.abc import Mapping
from math import gcd

from megatron_cpt.config.blend_faults import phase_faults, share_faults, source_faults
from megatron_cpt.config.errors import BadInput, Fault, refuse
from megatron_cpt.config.faults import config_faults
from megatron_cpt.config.phase_starts import phase_steps
from megatron_cpt.config.schema import ParallelSettings, RunConfig
from megatron_cpt.corpus.manifest import Manifest
from megatron_cpt.corpus.stream import TokenStream
from megatron_cpt.families.shape import ModelShape
from megatron_cpt.mixture.plan import BlendPlan, plan_blend
from megatron_cpt.mixture.shares import source_of
from megatron_cpt.mixture.streams import blend_streams
from megatron_cpt.planning.disk_space import folder_faults
from megatron_cpt.planning.evaluations import task_faults
from megatron_cpt.planning.inputs import RunInputs
from megatron_cpt.planning.shared_text import shared_faults
from megatron_cpt.planning.start_faults import frozen_faults, rate_faults, start_faults


def checked_blend(config: RunConfig, world_size: int | None, inputs: RunInputs) -> BlendPlan:
    """The blend of a run on `world_size` ranks (None: not known yet) in which nothing is wrong.

    Raises BadInput with every fault; one that is found in two ways is told once.
    """
    faults = input_faults(config, world_size, inputs)
    blend = None
    try:
        blend = blend_of(config, inputs)
    except BadInput as error:
        faults += error.faults
    refuse(list(dict.fromkeys(faults)))
    assert blend is not None, "inputs without faults are whole"
    return blend


def input_faults(config: RunConfig, world_size: int | None, inputs: RunInputs) -> list[Fault]:
    """All that is wrong with a run but with its blend."""
    faults = [*config_faults(config, world_size), *inputs.faults]
    if inputs.shape is not None:
        faults += shape_faults(config, inputs.shape)
        faults += layout_faults(config.parallel, inputs.shape)
        faults += frozen_faults(config, inputs.shape)
        faults += rate_faults(config, inputs.shape)
    faults += start_faults(config, inputs.shape)
    faults += folder_faults(config)
    faults += watch_faults(config)
    faults += tokenizer_faults(config, inputs)
    faults += label_faults(config, inputs)
    faults += validation_faults(config, inputs.validation_sets)
    faults += shared_faults(config, inputs)
    faults += task_faults(config, inputs)
    return faults


def blend_of(config: RunConfig, inputs: RunInputs) -> BlendPlan | None:
    """The blend of the run; None where a source could not be opened or the config's weights make no shares.

    Raises BadInput as plan_blend does.
    """
    if {source_of(name) for name in inputs.sources} != set(config.data.sources):
        return None
    if [*source_faults(config), *phase_faults(config), *share_faults(config.data)]:
        return None
    return plan_blend(
        config.data,
        blend_streams(
            config.data,
            {name: stream.tokens for name, stream in inputs.sources.items()},
            {name: stream.identity for name, stream in inputs.sources.items()},
            inputs.portions,
        ),
        total_sequences=config.batches.total(config.total_steps),
        seed=config.run.seed,
        step_sequences=config.training.global_batch_size,
        starts=phase_steps(config),
        ramp=config.batches.ramp,
    )


def shape_faults(config: RunConfig, shape: ModelShape) -> list[Fault]:
    """Sequences longer than the model was made for."""
    length = config.data.sequence_length
    if length <= shape.max_positions:
        return []
    rule = f"the model was made for at most {shape.max_positions} tokens (max_position_embeddings)."
    remedy = f"Use {shape.max_positions} or fewer, or give it positions for more with `model.rope`."
    return [Fault(f"data.sequence_length = {length}", rule, remedy)]


def layout_faults(parallel: ParallelSettings, shape: ModelShape) -> list[Fault]:
    """Parts of the model that the ranks cannot share evenly."""
    divided = {
        "attention heads": shape.heads,
        "key-value heads": shape.query_groups,
        "units of the MLP": shape.ffn_hidden,
    } | ({"units of an expert": shape.expert_ffn_hidden} if shape.experts else {})
    faults = [
        Fault(
            f"parallel.tensor = {parallel.tensor}",
            f"the model's {count} {what} cannot be divided evenly among {parallel.tensor} ranks.",
            f"Use {_one_of(_divisors(gcd(*divided.values())))}.",
        )
        for what, count in divided.items()
        if count % parallel.tensor
    ]
    if shape.experts and parallel.tensor > 1 and not parallel.sequence:
        rule = "Megatron-Core trains experts with tensor parallelism only where sequences are divided too."
        remedy = "Set parallel.sequence, or set it to 1 and divide the experts with parallel.expert."
        faults.append(Fault(f"parallel.tensor = {parallel.tensor}", rule, remedy))
    if parallel.expert > 1 and not shape.experts:
        faults.append(Fault(f"parallel.expert = {parallel.expert}", "the model has no experts.", "Set it to 1."))
    elif shape.experts % parallel.expert:
        rule = f"the {shape.experts} experts of a layer cannot be divided evenly among {parallel.expert} ranks."
        remedy = f"Use {_one_of(_divisors(shape.experts))}."
        faults.append(Fault(f"parallel.expert = {parallel.expert}", rule, remedy))
    if shape.layers % parallel.pipeline:
        rule = f"the model's {shape.layers} layers cannot be divided evenly among {parallel.pipeline} stages."
        remedy = f"Use {_one_of(_divisors(shape.layers))}."
        faults.append(Fault(f"parallel.pipeline = {parallel.pipeline}", rule, remedy))
    elif shape.layers // parallel.pipeline % parallel.virtual_pipeline:
        of_stage = shape.layers // parallel.pipeline
        rule = f"the {of_stage} layers of a stage cannot be divided evenly among {parallel.virtual_pipeline} chunks."
        remedy = f"Use {_one_of(_divisors(of_stage))}."
        faults.append(Fault(f"parallel.virtual_pipeline = {parallel.virtual_pipeline}", rule, remedy))
    return faults


def tokenizer_faults(config: RunConfig, inputs: RunInputs) -> list[Fault]:
    """Datasets made with another tokenizer than the model's, or with ids that the model has no row for.

    Datasets made elsewhere do not say; planning/plan.py warns of them.
    """
    faults = []
    for name, manifest in inputs.manifests():
        made_with = manifest.tokenizer_folder or "another tokenizer"
        if inputs.tokenizer and manifest.tokenizer not in (None, inputs.tokenizer.identity):
            faults.append(
                Fault(
                    f"{name}: tokenized with {made_with}",
                    f"the tokenizer of model.hf = {config.model.hf} is another one, so the ids mean other text.",
                    f"Prepare the dataset again with `--tokenizer {config.model.hf}`, or name the model that "
                    "belongs to it.",
                )
            )
        if inputs.shape is not None:
            faults += row_faults(name, manifest, f"model.hf = {config.model.hf}", inputs.shape.vocabulary)
    return faults


def row_faults(name: str, manifest: Manifest, model: str, rows: int) -> list[Fault]:
    """A dataset with ids that a model of so many embedding rows has none for.

    The ids that are in it decide: the tokenizers of some models have control tokens beyond the embedding. Where they
    are not known, the tokenizer's size does.
    """
    counted = manifest.largest_id is not None
    largest = manifest.largest_id if manifest.largest_id is not None else (manifest.vocabulary_size or 0) - 1
    if largest < rows:
        return []
    remedy = (
        "Prepare the dataset with the model's own tokenizer. If it was, leave out the text that holds such tokens, or "
        "give the model rows for them: `megatron-cpt convert extend HF_DIR OUTPUT --tokenizer HF_DIR`."
    )
    if not counted:
        remedy = "Prepare the dataset again: its manifest does not say which ids are in it. " + remedy
    return [Fault(f"{name}: ids up to {largest}", f"{model} has {rows} embedding rows, too few for them.", remedy)]


def validation_faults(config: RunConfig, streams: Mapping[str, TokenStream]) -> list[Fault]:
    """Validation sets that hold no whole sequence and its labels."""
    length = config.data.sequence_length
    remedy = "Hold more documents out (`megatron-cpt prepare --holdout`), or take the set out."
    faults = []
    for name, stream in streams.items():
        if stream.tokens <= length:
            found = f"has {stream.tokens} tokens" if stream.tokens else "is empty"
            rule = f"a validation set is at least one sequence of {length} tokens and the label of the last."
            faults.append(Fault(f"validation.sets.{name}: {found}", rule, remedy))
    return faults


def watch_faults(config: RunConfig) -> list[Fault]:
    """Weights & Biases where it is asked for and not installed."""
    found = importlib.util.find_spec("wandb")
    # A folder wandb/, which its runs leave, is found as a package without an origin.
    if config.run.wandb is None or (found is not None and found.origin is not None):
        return []
    return [Fault("run.wandb", "the package wandb is not installed.", "Run `pip install wandb`, or take it out.")]


def label_faults(config: RunConfig, inputs: RunInputs) -> list[Fault]:
    """An EOD that is to be left out and that no manifest names, and columns of leads that are not there."""
    faults = []
    if not config.data.labels.eod:
        for name, manifest in inputs.manifests():
            if manifest.eod is None:
                rule = "the manifest of a dataset does not say which token ends a document."
                remedy = "Name its id in data.labels.unscored_tokens, and leave data.labels.eod true."
                faults.append(Fault(f"data.labels.eod = false; {name}", rule, remedy))
    for name, lead, stream in (
        *(
            (f"data.sources.{name}", config.data.sources[source_of(name)].unscored_lead, stream)
            for name, stream in inputs.sources.items()
        ),
        *(
            (f"validation.sets.{name}", config.validation.sets[name].unscored_lead, stream)
            for name, stream in inputs.validation_sets.items()
        ),
    ):
        if lead is not None:
            try:
                stream.leads(lead)
            except BadInput as error:
                faults += [Fault(f"{name}.unscored_lead: {one.value}", one.rule, one.remedy) for one in error.faults]
    return faults


def _divisors(number: int) -> list[int]:
    return [divisor for divisor in range(1, number + 1) if number % divisor == 0]


def _one_of(numbers: list[int]) -> str:
    words = [str(number) for number in numbers]
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} or {words[-1]}"
