"""Every fault of a run that files can show, found before anything is paid for and told at once."""

import importlib.util
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, fields
from itertools import combinations
from math import gcd
from pathlib import Path
from typing import Any

from megatron_cpt.config.checks import best_faults, config_faults
from megatron_cpt.config.errors import BadInput, Fault
from megatron_cpt.config.passed_fields import engine_only_fields
from megatron_cpt.config.schema import DataSettings, ParallelSettings, RunConfig
from megatron_cpt.corpus.manifest import Manifest, data_names
from megatron_cpt.corpus.stream import DocumentSet, TokenStream
from megatron_cpt.families.family import ModelShape
from megatron_cpt.families.rope import LengthScaling
from megatron_cpt.families.shape import read_shape
from megatron_cpt.mixture.phases import source_of
from megatron_cpt.planning.disk_space import folder_faults
from megatron_cpt.planning.evaluations import task_faults
from megatron_cpt.planning.inputs import RunInputs
from megatron_cpt.planning.rates import decay_faults
from megatron_cpt.planning.start_state import base_history_faults
from megatron_cpt.runs.checkpoint_state import find_state, newest_checkpoint
from megatron_cpt.runs.folder import RunFolder


def input_faults(config: RunConfig, world_size: int | None, inputs: RunInputs) -> list[Fault]:
    """All that is wrong with a run on `world_size` ranks (None: not known yet) but with its blend."""
    faults = [*config_faults(config, world_size), *inputs.faults]
    if inputs.shape is not None:
        faults += model_faults(config, inputs.shape)
    faults += init_from_faults(config, inputs.shape)
    faults += base_history_faults(config)
    faults += folder_faults(config)
    faults += _tracker_faults(config)
    faults += _tokenizer_faults(config, inputs)
    faults += _label_faults(config, inputs)
    faults += _validation_faults(config, inputs.validation_sets)
    faults += _shared_faults(config, inputs)
    faults += task_faults(config, inputs)
    return faults


def model_faults(config: RunConfig, shape: ModelShape) -> list[Fault]:
    """All that is wrong with a run of a model of this shape, whatever it reads."""
    return [
        *_shape_faults(config, shape),
        *_division_faults(config.parallel, shape),
        *_frozen_faults(config, shape),
        *_part_faults(config, shape),
        *_engine_faults(config, shape),
    ]


def _shape_faults(config: RunConfig, shape: ModelShape) -> list[Fault]:
    """Sequences longer than the model was made for, or so long that no document in them has a length of its own."""
    length, scaling = config.data.sequence_length, shape.rope_scaling
    shown = f"data.sequence_length = {length}"
    if length > shape.max_positions:
        rule = f"the model was made for at most {shape.max_positions} tokens (max_position_embeddings)."
        remedy = f"Use {shape.max_positions} or fewer, or give it positions for more with `model.rope`."
        return [Fault(shown, rule, remedy)]
    if not isinstance(scaling, LengthScaling) or config.data.attention != "within_documents":
        return []
    if length <= (original := scaling.original_positions):
        return []
    rule = (
        f"beyond {original} tokens the positions of this model depend on the length of a sequence, and "
        "within_documents puts documents of many lengths into one."
    )
    remedy = f"Use {original} or fewer, or set data.attention to across_documents."
    return [Fault(shown, rule, remedy)]


def _engine_faults(config: RunConfig, shape: ModelShape) -> Iterator[Fault]:
    """Settings that only Transformer Engine's layers obey, where it has none for the model."""
    if not shape.has_engine_layers:
        rule = f"only Transformer Engine's layers have it, and it has no layers of family {shape.family}."
        for name, value in engine_only_fields(config.megatron).items():
            yield Fault(f"megatron.transformer.{name} = {value!r}", rule, "Take this out.")


def _division_faults(parallel: ParallelSettings, shape: ModelShape) -> list[Fault]:
    """Parts of the model that the ranks cannot share evenly."""
    divided = {
        "attention heads": shape.heads,
        "key-value heads": shape.query_groups,
        "units of the MLP": shape.ffn_hidden,
    } | ({"units of an expert": shape.expert_ffn_hidden} if shape.experts else {})
    if shape.latent_attention:
        divided["dimensions of latent vectors"] = gcd(shape.query_latent, shape.latent_and_shared_key)
    if shape.delta_layers:
        divided["key heads of a gated delta net"] = shape.delta_key_heads
    if shape.shared_expert_ffn_hidden:
        divided["units of the shared expert"] = shape.shared_expert_ffn_hidden
    faults = [
        Fault(
            f"parallel.tensor = {parallel.tensor}",
            f"the model's {count} {what} cannot be divided evenly among {parallel.tensor} ranks.",
            f"Use {_one_of(_divisors(gcd(*divided.values())))}.",
        )
        for what, count in divided.items()
        if count % parallel.tensor
    ]
    if shape.delta_layers and parallel.context > 1:
        rule = "a gated delta net takes one token after the other, and no rank can begin inside of a sequence."
        faults.append(Fault(f"parallel.context = {parallel.context}", rule, "Set it to 1, and use parallel.tensor."))
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


def _tokenizer_faults(config: RunConfig, inputs: RunInputs) -> list[Fault]:
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
    are not known, the tokenizer's size does. Of a pair made elsewhere samples are known, and each read is compared.
    """
    counted = manifest.largest_id is not None
    largest = manifest.largest_id if manifest.largest_id is not None else manifest.last_id
    if largest is None or largest < rows:
        return []
    remedy = (
        "Prepare the dataset with the model's own tokenizer. If it was, leave out the text that holds such tokens, or "
        "give the model rows for them: `megatron-cpt convert extend HF_DIR OUTPUT --tokenizer HF_DIR`."
    )
    if not counted:
        remedy = "Prepare the dataset again: its manifest does not say which ids are in it. " + remedy
    return [Fault(f"{name}: ids up to {largest}", f"{model} has {rows} embedding rows, too few for them.", remedy)]


def _validation_faults(config: RunConfig, streams: Mapping[str, TokenStream]) -> list[Fault]:
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


def _tracker_faults(config: RunConfig) -> list[Fault]:
    """Trackers that are asked for and not installed."""
    faults = []
    for name, asked, package in (
        ("run.wandb_project", config.run.wandb_project, "wandb"),
        ("run.mlflow_experiment", config.run.mlflow_experiment, "mlflow"),
    ):
        found = importlib.util.find_spec(package)
        # A folder of this name, which wandb's runs leave, is found as a package without an origin.
        if asked is not None and (found is None or found.origin is None):
            remedy = f"Run `pip install {package}`, or take it out."
            faults.append(Fault(name, f"the package {package} is not installed.", remedy))
    return faults


def _label_faults(config: RunConfig, inputs: RunInputs) -> list[Fault]:
    """An EOD that is to be left out and that no manifest names, and columns of the loss that are not there."""
    faults = []
    if not config.data.loss_mask.eod:
        for name, manifest in inputs.manifests():
            if manifest.eod is None:
                rule = "the manifest of a dataset does not say which token ends a document."
                remedy = "Name its id in data.loss_mask.ignored_token_ids, and leave data.loss_mask.eod true."
                faults.append(Fault(f"data.loss_mask.eod = false; {name}", rule, remedy))
    for name, column, stream in (
        *(
            (f"data.sources.{name}", config.data.sources[source_of(name)].loss_mask_column, stream)
            for name, stream in inputs.sources.items()
        ),
        *(
            (f"validation.sets.{name}", config.validation.sets[name].loss_mask_column, stream)
            for name, stream in inputs.validation_sets.items()
        ),
    ):
        try:
            stream.open_loss_masks(column)
        except BadInput as error:
            faults += [Fault(f"{name}.loss_mask_column: {one.value}", one.rule, one.remedy) for one in error.faults]
    return faults


def _divisors(number: int) -> list[int]:
    return [divisor for divisor in range(1, number + 1) if number % divisor == 0]


def _one_of(numbers: list[int]) -> str:
    words = [str(number) for number in numbers]
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} or {words[-1]}"


Pair = tuple[str, str]


def _shared_faults(config: RunConfig, inputs: RunInputs) -> list[Fault]:
    """Text that is both trained on and validated on, and text that two sources give at the same time."""
    return [*_validated_faults(inputs), *_source_faults(config.data, inputs.sources)]


def shared_warnings(config: RunConfig, inputs: RunInputs) -> Iterator[str]:
    """Sources that share documents and give them at different times."""
    for (first, second), count in shared_by_sources(inputs.sources).items():
        if not _read_together(config.data, first, second):
            yield (
                f"sources {first} and {second} share {count:,} documents; they give them in different phases, and the "
                "epochs of each are counted apart."
            )


def _validated_faults(inputs: RunInputs) -> Iterator[Fault]:
    trained = [(source_of(name), one) for name, stream in inputs.sources.items() for one in stream.document_sets]
    validated = [(name, one) for name, stream in inputs.validation_sets.items() for one in stream.document_sets]
    names = _data_names([*trained, *validated])
    readers = _by_data(trained, names[: len(trained)])
    for (name, held_out), data in zip(validated, names[len(trained) :], strict=True):
        for source, documents in readers.get(data, []):
            if count := documents.shared_with(held_out):
                yield Fault(
                    f"validation.sets.{name}.paths: {held_out.prefix}",
                    f"data.sources.{source} trains on {count:,} of its documents, so its loss would say nothing "
                    "about new text.",
                    "Name a held-out dataset (`megatron-cpt prepare --holdout` writes PREFIX.validation).",
                )


def _source_faults(data: DataSettings, sources: Mapping[str, TokenStream]) -> Iterator[Fault]:
    for (first, second), count in shared_by_sources(sources).items():
        if _read_together(data, first, second):
            yield Fault(
                f"data.sources.{first} and data.sources.{second}",
                f"share {count:,} documents, which would be read by both: neither's epochs would be true.",
                "Select documents that the other leaves out, raise one source's weight instead, or let "
                "the two give tokens in different phases.",
            )


def shared_by_sources(sources: Mapping[str, TokenStream]) -> dict[Pair, int]:
    """Documents that two sources share, for each pair that does."""
    counts: dict[Pair, int] = defaultdict(int)
    trained = [(source_of(name), one) for name, stream in sources.items() for one in stream.document_sets]
    for readers in _by_data(trained, _data_names(trained)).values():
        for (first, documents), (second, others) in combinations(readers, 2):
            if first != second and (count := documents.shared_with(others)):
                counts[first, second] += count
    return counts


Reader = tuple[str, DocumentSet]
"""The name of a source or validation set, and documents that it reads."""


def _data_names(readers: Sequence[Reader]) -> list[str]:
    return data_names([(documents.dataset, documents.manifest) for _, documents in readers])


def _by_data(readers: Sequence[Reader], names: Sequence[str]) -> dict[str, list[Reader]]:
    """Who reads which documents of the same data."""
    found: dict[str, list[Reader]] = defaultdict(list)
    for reader, name in zip(readers, names, strict=True):
        found[name].append(reader)
    return found


def _read_together(data: DataSettings, first: str, second: str) -> bool:
    """Whether some phase gives weight to both sources."""
    blends = [data.in_phase(phase).sources for phase in data.phases] or [data.sources]
    return any(bool(sources[first].weight and sources[second].weight) for sources in blends)


_SIZE, RAMP = "training.global_batch_size", "training.batch_size_rampup"
_LARGEST_RATE = 1.0
"""Peak learning rates above this are mistakes."""

_NOT_THE_MODEL = ("max_positions", "rope_base", "rope_scaling")
"""What two folders of one model may say differently."""


def init_from_faults(config: RunConfig, shape: ModelShape | None) -> Iterator[Fault]:
    """Everything wrong with the section `init_from`."""
    start = config.init_from
    if start.checkpoint is None:
        for name, value in (
            ("load_optimizer", start.load_optimizer),
            ("load_schedule", start.load_schedule),
            ("load_data_position", start.load_data_position),
        ):
            if value:
                rule = "there is no checkpoint that it could be kept of."
                yield Fault(f"init_from.{name} = true", rule, "Set `init_from.checkpoint`, or take it out.")
        return
    shown = f"init_from.checkpoint = {start.checkpoint}"
    checkpoint = Path(start.checkpoint)
    if not (checkpoint / "complete.json").is_file():
        rule = "is not a complete checkpoint."
        yield Fault(shown, rule, "Name one, such as RUN/checkpoints/step-00000400, or leave it out and set `model.hf`.")
        return
    yield from _shape_differences(shown, checkpoint, shape)
    if (start.load_schedule or start.load_data_position) and any(
        phase.from_lr is not None for phase in config.data.phases
    ):
        rule = "a phase that begins at a learning rate needs a schedule that begins with the run."
        yield Fault(
            shown,
            rule,
            "Give the phase `from_tokens`, or leave `init_from.load_schedule` and `init_from.load_data_position` "
            "false.",
        )
    if start.load_optimizer or start.load_schedule or start.load_data_position:
        yield from _position_faults(config, shown, checkpoint)


def _shape_differences(shown: str, checkpoint: Path, shape: ModelShape | None) -> Iterator[Fault]:
    """A checkpoint of another model than `model.hf` describes."""
    try:
        theirs = read_shape(checkpoint / "hf")
    except BadInput as error:
        yield from error.faults
        return
    differing = [] if shape is None else differing_fields(theirs, shape)
    if differing:
        rule = f"is of another model than model.hf describes: they differ in {', '.join(differing)}."
        yield Fault(shown, rule, f"Set `model.hf` to {checkpoint / 'hf'}.")


def differing_fields(one: ModelShape, other: ModelShape) -> list[str]:
    """The fields in which two models differ, rotary positions aside: models whose weights have the same shapes, too."""
    names = [field.name for field in fields(one) if field.name not in _NOT_THE_MODEL]
    return [name for name in names if getattr(one, name) != getattr(other, name)]


def _position_faults(config: RunConfig, shown: str, checkpoint: Path) -> Iterator[Fault]:
    """A checkpoint that has nothing to be kept, or that the run cannot go on counting from."""
    state = find_state(checkpoint)
    if state is None:
        rule = "holds weights alone: no run wrote it."
        remedy = "Leave `load_optimizer`, `load_schedule` and `load_data_position` false."
        yield Fault(shown, rule, remedy)
        return
    if newest_checkpoint(RunFolder(config.run.folder).checkpoints) is None:
        yield from decay_faults(config)
    distributed = state.layout.distributed_optimizer
    if config.init_from.load_optimizer and config.parallel.distributed_optimizer != distributed:
        name = f"parallel.distributed_optimizer = {str(not distributed).lower()}"
        rule = f"the optimizer state of {checkpoint} is that of the other kind."
        yield Fault(name, rule, f"Set it to {str(distributed).lower()}, or `init_from.load_optimizer` to false.")
    if not config.init_from.load_data_position:
        return
    if state.updates is not None:
        rule = "another program wrote what it was made of, and read its data in another order."
        yield Fault(shown, rule, "Set `init_from.load_data_position: false`.")
        return
    yield from batch_faults(config, shown, state.step, state.sequences, state.batches)
    if config.total_tokens <= state.tokens:
        rule = f"with data kept, it counts from the beginning, and the checkpoint stands at {state.tokens} tokens."
        yield Fault(
            f"training.tokens = {config.training.tokens}",
            rule,
            "Raise it, or set `init_from.load_data_position: false`.",
        )
    else:
        yield from best_faults(config, state.step)


def batch_faults(
    config: RunConfig, shown: str, step: int, sequences: int, before: Mapping[str, Any] | None
) -> Iterator[Fault]:
    """A position that a run with these batch sizes does not pass: its steps took more sequences, or fewer.

    Args:
        before: the settings of the steps done (batch_settings). None: not known.
    """
    here = config.sequences_at(step)
    if here == sequences:
        return
    now, before = batch_settings(config), before or {}
    value = f"training.global_batch_size = {now[_SIZE]}, batch_size_rampup = {_ramp(now[RAMP])}; {shown}"
    rule = f"its {step} steps took {sequences} sequences, and here they take {here}: steps go on counting."
    parts = [f"Set it to {before[_SIZE]}."] if before.get(_SIZE, now[_SIZE]) != now[_SIZE] else []
    if before.get(RAMP, now[RAMP]) != now[RAMP]:
        parts.append(f"Set `training.batch_size_rampup: {_ramp(before[RAMP])}`, as it was.")
    if parts and before[RAMP] is None and now[_SIZE] > before[_SIZE]:
        ramp = {"start": before[_SIZE], "increment": now[_SIZE] - before[_SIZE]}
        ramp["tokens"] = sequences * config.data.sequence_length
        parts.append(f"Or, for {now[_SIZE]} a step from there on, set `training.batch_size_rampup: {_ramp(ramp)}`.")
    whole = " ".join(parts) or "Set both as they were there (config.yaml in the run folder has them)."
    yield Fault(value, rule, whole)


def batch_settings(config: RunConfig) -> dict[str, Any]:
    """The settings that say how many sequences each step takes."""
    ramp = config.training.batch_size_rampup
    return {_SIZE: config.training.global_batch_size, RAMP: None if ramp is None else asdict(ramp)}


def _ramp(ramp: Mapping[str, int] | None) -> str:
    """A ramp as YAML has it on one line."""
    return "null" if ramp is None else "{" + ", ".join(f"{name}: {value}" for name, value in ramp.items()) + "}"


def _part_faults(config: RunConfig, shape: ModelShape) -> Iterator[Fault]:
    """lr_multipliers and no_weight_decay of parts that the model does not have."""
    optimizer = config.optimizer
    if config.schedule.peak_lr > _LARGEST_RATE:
        rule = (
            f"AdamW moves every weight by about the learning rate at each step: above {_LARGEST_RATE:g} "
            "nothing is left."
        )
        yield Fault(
            f"schedule.peak_lr = {config.schedule.peak_lr:g}", rule, "Continual pretraining takes 1e-5 to 1e-3."
        )
    for number, group in enumerate(optimizer.lr_multipliers.layers):
        if group.last >= shape.layers:
            rule = f"the model's layers are 0 to {shape.layers - 1}."
            shown = f"optimizer.lr_multipliers.layers.{number} = {group.first} to {group.last}"
            yield Fault(shown, rule, "Name layers that it has.")
    if shape.tied_embeddings and optimizer.lr_multipliers.output not in (1, optimizer.lr_multipliers.embedding):
        rule = "the output layer of this model has the weights of the embedding."
        yield Fault(
            f"optimizer.lr_multipliers.output = {optimizer.lr_multipliers.output:g}",
            rule,
            "Set `optimizer.lr_multipliers.embedding`.",
        )


def _frozen_faults(config: RunConfig, shape: ModelShape) -> Iterator[Fault]:
    """Frozen parts that leave nothing to train, on the whole model or on a pipeline stage."""
    frozen, stages = config.model.frozen, config.parallel.pipeline
    shown = f"model.frozen = {frozen.bottom} bottom and {frozen.top} top layers"
    if frozen.bottom + frozen.top > shape.layers:
        yield Fault(shown, f"the model has {shape.layers} layers.", "Freeze fewer.")
    elif stages > 1 and not shape.layers % stages:
        of_stage = shape.layers // stages
        if frozen.bottom >= of_stage or frozen.top >= of_stage:
            rule = f"it leaves nothing to train on a pipeline stage of {of_stage} layers."
            yield Fault(shown, rule, f"Freeze fewer than {of_stage} at each end, or use fewer stages.")
    if frozen.embeddings and stages > 1 and shape.tied_embeddings:
        rule = "an embedding that the first and the last stage share cannot be frozen."
        remedy = "Use one pipeline stage, or `optimizer.lr_multipliers.embedding: 0`."
        yield Fault("model.frozen.embeddings = true", rule, remedy)
