"""From a configuration of LLaMA-Factory, axolotl or transformers' Trainer to a run.yaml.

Their shared words: a batch is `per_device_train_batch_size` examples on each device, times the accumulation, times the
devices; a length is steps or epochs; texts are files that they tokenize themselves. Here a batch is sequences over all
ranks, a length is tokens or steps, and datasets are made before. What follows from several keys is written out below;
tables (config_keys.py) say the rest.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil
from pathlib import Path

import orjson

from megatron_cpt.config.errors import Fault, refuse
from megatron_cpt.planning.config_file import TRAINER_FILES, ConfigFile
from megatron_cpt.planning.config_keys import ConfigTranslation, find_model, key_of, roles
from megatron_cpt.planning.outcomes import Imported, ImportOptions, Outcome, imported
from megatron_cpt.planning.run_file import distinct_names, source_name
from megatron_cpt.planning.trainer_deepspeed import compare_deepspeed, has_scheduler, translate_deepspeed_schedule
from megatron_cpt.planning.trainer_intervals import Length, dataset_labels, translate_checkpoints, translate_evaluations
from megatron_cpt.planning.trainer_schedule import translate_optimizer, translate_schedule

_OTHER_STAGES = ("rm", "ppo", "dpo", "kto")
_MICRO, _ACCUMULATION = "per_device_train_batch_size", "gradient_accumulation_steps"
_STAGE = "deepspeed.zero_optimization.stage"
_LORA = (
    "All weights are trained here. A learning rate for adapters is usually too high for them: choose schedule.peak_lr "
    "anew"
)
_ROWS = (
    "An example is a row of its own there, padded or cut to the length. Here sequences are full, so that a step holds "
    "more text. Lower training.global_batch_size by the share of padding, or compare by tokens"
)


@dataclass(frozen=True)
class _Dataset:
    """A dataset of the configuration, and where it is to be."""

    name: str
    """Of the source."""
    path: str
    """Prefix that `megatron-cpt prepare` writes, or has written."""
    tokens: int | None
    """None: it is not there, and nothing was assumed."""


def import_trainer(config: ConfigFile, options: ImportOptions) -> Imported:
    """Translates a configuration. Raises BadInput for one that no run could be made of."""
    translation = _TrainerTranslation(config, options)
    translation.translate()
    return imported(translation.entries, translation.outcomes)


class _TrainerTranslation(ConfigTranslation):
    """A configuration of the Trainer's keys on its way to a run.yaml."""

    def translate(self) -> None:
        """Every entry and every outcome."""
        self.shape = find_model(self, "model_name_or_path")
        self.length = self.positive("block_size") if self.value("block_size") is not None else None
        if self.length is None:
            self.need("block_size", "is not there: the Trainer's arguments do not have the length of a sequence.")
        self.key, self.datasets = self._datasets()
        self.replay = roles(self, [one.name for one in self.datasets], [one.path for one in self.datasets])
        self._stage_faults()
        self.batch = self._batch()
        refuse(self.faults)
        self.steps = self._steps()
        refuse(self.faults)
        compare_deepspeed(self, self.steps)
        refuse(self.faults)
        self._run()
        self._documents()
        self._sources()
        self._training()
        if has_scheduler(self):
            translate_deepspeed_schedule(self, self.steps)
        else:
            translate_schedule(self, self.steps)
        translate_optimizer(self)
        self._sharding()
        self._frozen()
        self._rope()
        length = Length(self.steps, self._epochs() if self.by_epochs else None)
        translate_evaluations(self, {one.name: one.path for one in self.datasets}, self.replay, length)
        translate_checkpoints(self, length)
        self.rest()
        refuse(self.faults)

    # --- what must be there

    def _stage_faults(self) -> None:
        stage = self.value("stage")
        if stage in _OTHER_STAGES:
            rule = "trains on preferences, which is not done here."
            self.faults.append(Fault(self.text("stage"), rule, "Import a configuration of the stage pt or sft."))

    def _batch(self) -> int:
        """Sequences of a step: those of a device, times the accumulation, times the data-parallel ranks."""
        micro, times, ranks = self.positive(_MICRO), self.positive(_ACCUMULATION), self.options.ranks
        if ranks is None:
            name = self.name(_MICRO)
            rule = "is of one device, and how many there are is not in the configuration."
            self.faults.append(Fault(name, rule, "Give them with --nproc."))
        shared = self._tensor() * self._context()
        if ranks is not None and ranks % shared:
            rule = f"is no multiple of the {shared} ranks that share a sequence."
            self.faults.append(Fault(f"--nproc {ranks}", rule, "Give the ranks of the run."))
        return micro * times * max(1, (ranks or 1) // shared)

    def _tensor(self) -> int:
        return self.whole("parallelism_config.tp_size") or 1

    def _context(self) -> int:
        sizes = ("parallelism_config.cp_size", "parallelism_config.sp_size", "hyper_parallel_cp_size")
        return max(self.whole(key) or 1 for key in sizes)

    # --- datasets

    def _datasets(self) -> tuple[str | None, list[_Dataset]]:
        """The key that names the datasets, and these. One that is no prefix of tokens stands for `data/NAME`."""
        key = next(filter(self.has, ("pretraining_dataset", "datasets", "dataset_name", "train_file")), None)
        labels = list(dataset_labels(self.value(key))) if key is not None else ["text"]
        if not labels:
            self.need(key or "dataset_name", "names no dataset.")
        names = distinct_names(map(source_name, labels))
        found = []
        for name, label in zip(names, labels, strict=True):
            path = label if Path(f"{label}.idx").is_file() else f"data/{name}"
            found.append(_Dataset(name, path, self.tokens_of(name, path)))
        return key, found

    def _sources(self) -> None:
        weights, remark = self._weights()
        epochs = self._epochs() if self.by_epochs else None
        if weights is None and epochs is None and not self.replay:
            place = f"data.sources.{self.datasets[0].name}.paths"
            self.write(place, [one.path for one in self.datasets], "")
            remark = "each once an epoch" if len(self.datasets) > 1 else ""
        else:
            for number, one in enumerate(self.datasets):
                place = f"data.sources.{one.name}"
                self.write(f"{place}.paths", [one.path], "")
                if one.name in self.replay:
                    self.write(f"{place}.role", "replay", "")
                if weights is not None:
                    self.write(f"{place}.weight", weights[number], "")
                    if epochs is not None and self.value("mix_strategy") == "interleave_once":
                        self.write(f"{place}.max_epochs", epochs, "")
                elif epochs is not None:
                    self.write(f"{place}.epochs", epochs, "")
        if weights is not None and epochs is not None and self.value("mix_strategy") == "interleave_once":
            self.write("data.when_exhausted", "redistribute", "a source that is read leaves its share to the others")
        self._tell_of_sources(remark)

    def _tell_of_sources(self, remark: str) -> None:
        names = ", ".join(one.name for one in self.datasets)
        missing = [one.path for one in self.datasets if not Path(f"{one.path}.idx").is_file()]
        words = f"data.sources: {names}{f' ({remark})' if remark else ''}"
        if missing:
            chat = " --chat" if self.is_chat else ""
            command = f"`megatron-cpt prepare {self._files()}{chat} --tokenizer {self.model} --output {missing[0]}`"
            words += f"; first {command}{' and so on' if len(missing) > 1 else ''}"
        if self.key is None:
            words = f"The program that makes the Trainer names its dataset. In the file it is {words}"
            self.outcomes.append(Outcome("train_dataset", "refused", words))
        else:
            self.note(self.key, "taken", words)

    def _files(self) -> str:
        """Files of the first dataset, where LLaMA-Factory's list of datasets has one; else a word for them."""
        path = Path(str(self.value("dataset_dir") or "data"), "dataset_info.json")
        try:
            listed = orjson.loads(path.read_bytes())[next(iter(dataset_labels(self.value("dataset_name"))))]
            return str(path.parent / listed["file_name"])
        except (OSError, ValueError, KeyError, TypeError, StopIteration):
            return "FILES"

    def _weights(self) -> tuple[list[float] | None, str]:
        """Weights of the sources, None where they are read in proportion to their sizes; and a remark."""
        mix = str(self.value("mix_strategy") or "concat")
        if mix == "concat":
            self.equal("mix_strategy", words="sources are read in proportion to their sizes")
            if self.replay and not self.by_epochs:
                counts = [one.tokens for one in self.datasets]
                if None in counts:
                    rule = "needs the tokens of every dataset, for they are read in proportion to these."
                    self.faults.append(Fault("--replay", rule, _assume(self.datasets)))
                return [float(count or 1) for count in counts], "weights are their tokens"
            return None, ""
        parts = self.numbers("interleave_probs")
        weights = parts or [1.0] * len(self.datasets)
        if len(weights) != len(self.datasets):
            self.faults.append(Fault(self.text("interleave_probs"), "is not one number for each dataset.", "Mend it."))
            weights = [1.0] * len(self.datasets)
        if parts:
            self.note("interleave_probs", "taken", "data.sources.NAME.weight: shares of examples there, of tokens here")
        ends = {
            "interleave_under": "the run ends with the first source that is read; the length follows from that",
            "interleave_over": "the run ends once every source is read, shorter ones are repeated",
            "interleave_once": "a source that is read leaves its share to the others",
        }
        self.note("mix_strategy", "taken", f"data.sources.NAME.weight; {ends.get(mix, 'by weights')}")
        return weights, "by weights"

    # --- length

    @property
    def by_epochs(self) -> bool:
        """Whether the length is in epochs."""
        return (self.number("max_steps") or 0) <= 0

    def _epochs(self) -> float:
        """Passes over the datasets."""
        epochs = self.number("num_train_epochs")
        if epochs is None or epochs <= 0:
            self.faults.append(
                Fault(self.text("num_train_epochs"), "is no length of a run.", "Give epochs, or max_steps.")
            )
            return 1
        return int(epochs) if epochs == int(epochs) else epochs

    def _steps(self) -> int:
        """Steps of the run. A fault is noted where epochs are of datasets that nobody knows the size of."""
        if not self.by_epochs:
            return self.whole("max_steps") or 1
        counts = [one.tokens for one in self.datasets]
        if None in counts:
            names = ", ".join(one.path for one in self.datasets if one.tokens is None)
            rule = f"is a length in epochs, and a run here has one in tokens; the datasets are not there: {names}."
            remedy = f"Prepare them first, or {_assume(self.datasets, 'say')} Or give steps: `-- max_steps=1000`."
            self.faults.append(Fault(self.text("num_train_epochs"), rule, remedy))
            return 1
        known = [count for count in counts if count is not None]
        return max(1, int(self._epoch_tokens(known) * self._epochs()) // (self.batch * (self.length or 1)))

    def _epoch_tokens(self, counts: Sequence[int]) -> float:
        """Tokens of an epoch of all datasets together, as they are mixed."""
        mix = self.value("mix_strategy")
        if mix not in ("interleave_under", "interleave_over"):
            return sum(counts)
        weights = self._weights()[0] or [1.0] * len(counts)
        lengths = [count * sum(weights) / weight for count, weight in zip(counts, weights, strict=True) if weight]
        return min(lengths) if mix == "interleave_under" else max(lengths)

    # --- the rules

    def _run(self) -> None:
        output = str(self.value("output_dir") or "").rstrip("/")
        folder = self.options.folder or (f"{output}-cpt" if output else "runs/imported")
        if output:
            self.take("output_dir", "run.folder", folder, "a folder of its own")
        else:
            self.write("run.folder", folder)
        self.take("seed", "run.seed", self.whole("seed"))
        self.take(
            "logging_steps", "run.log_interval", f"{Length(self.steps).share(self.number('logging_steps'))} steps"
        )
        project = self.value("wandb_project")
        if project:
            self.take("wandb_project", "run.wandb_project", str(project))
        elif "wandb" in str(self.value("report_to")) or self.value("report_to") == "all":
            self.take("report_to", "run.wandb_project", str(self.value("project") or "huggingface"))
        experiment = self.value("mlflow_experiment_name")
        if experiment:
            self.take("mlflow_experiment_name", "run.mlflow_experiment", str(experiment))
        self.equal("report_to", "wandb_project", "mlflow_experiment_name", words="RUN/tensorboard is always written")
        self.write("data.sequence_length", self.length)
        remark = "; one less there, with packing: true" if self.values.get("packing") is True else ""
        shown = f"data.sequence_length: {self.length} tokens, each with a label"
        self.note("block_size", "taken", shown + (remark if self.program.name == "llama-factory" else ""))

    def _documents(self) -> None:
        """How documents and conversations share sequences."""
        stage, packing = self.value("stage"), self.value("packing")
        is_llama_factory = self.program.name == "llama-factory"
        self.is_chat = stage == "sft" or self._is_axolotl_chat()
        if stage is not None:
            words = "`prepare --chat`: answers count in the loss" if self.is_chat else "the next token of all text"
            self.note("stage", "equal", words)
        if is_llama_factory:
            whole, key = bool(self.is_chat), "neat_packing" if self.has("neat_packing") else "packing"
            rows = packing is False or (packing is None and self.is_chat and not self.switch("neat_packing"))
        elif self.program.name == "axolotl":
            whole, key = self.switch("sample_packing") or self.is_chat, "sample_packing"
            rows = not self.switch("sample_packing") and not self.has("pretraining_dataset")
        else:
            wrapped = self.value("packing_strategy") == "wrapped" or not self.has("packing")
            whole, key = not wrapped, "packing"
            rows = self.has("packing") and not self.switch("packing")
        if whole:
            self.write("data.attention", "within_documents", "no document sees another")
            self.write("data.packing", "best_fit", "whole documents in each sequence")
        if rows:
            self.refuse(key, _ROWS)
        elif is_llama_factory and self.is_chat and not self.switch("neat_packing"):
            words = "Packed examples see each other there. Here each sees itself alone (data.attention)"
            self.refuse("packing", words)
        packed = "data.packing: best_fit" if whole else "documents are laid end to end"
        self.equal("packing", "neat_packing", "sample_packing", "packing_strategy", words=packed)
        self._loss_mask()

    def _is_axolotl_chat(self) -> bool:
        """Whether a dataset of axolotl holds conversations: its type is none of plain text."""
        kinds = [str(one.get("type")) for one in self.values.get("datasets") or [] if isinstance(one, dict)]
        return any(kind not in ("completion", "pretrain", "None") for kind in kinds)

    def _loss_mask(self) -> None:
        for key in ("train_on_prompt", "train_on_inputs"):
            if self.switch(key):
                self.note(key, "taken", "prepare with `--chat --train-on all`: every token counts")
        if self.switch("mask_history"):
            self.refuse("mask_history", "Answers of all turns count. Mark the others with `train: false` in the data")
        words = "what the assistant says counts in the loss (`prepare --chat`), in other text all of it"
        for key in ("train_on_prompt", "train_on_inputs", "mask_history"):
            self.equal(key, words=words)
        self.equal("assistant_only_loss", "completion_only_loss", words=words)

    def _training(self) -> None:
        tokens = self.steps * self.batch * (self.length or 0)
        told = f"{tokens:,} tokens"
        if self.by_epochs:
            passes = f"{self._epochs():g} times {int(tokens / self._epochs()):,} tokens"
            self.take("num_train_epochs", "training.tokens", f"{self.steps} steps", passes, told)
            self.equal("max_steps", words="the length is in epochs")
        else:
            self.take("max_steps", "training.tokens", f"{self.steps} steps", told, told)
            self.equal("num_train_epochs", words="max_steps holds over it")
        micro, times = self.positive(_MICRO), self.positive(_ACCUMULATION)
        ranks = self.batch // (micro * times)
        sizes = f"{micro} x {times} x {ranks} data-parallel ranks"
        self.take(_ACCUMULATION, "training.global_batch_size", self.batch, sizes)
        self.take(_MICRO, "training.micro_batch_size", micro)
        self._precision()
        self._recompute()

    def _precision(self) -> None:
        half = self.switch("fp16") or self.switch("float16")
        if self.switch("bf16") or self.switch("pure_bf16") or half:
            key = "pure_bf16" if self.switch("pure_bf16") else "bf16"
            remark = "main weights and the optimizer's state stay in fp32" if key == "pure_bf16" else ""
            self.write("training.precision", "bf16", "")
            if not half:
                self.note(key, "taken", f"training.precision: bf16{f' ({remark})' if remark else ''}")
        else:
            self.take("bf16", "training.precision", "fp32")
        self.equal("bf16", "pure_bf16", words="training.precision says it")

    def _recompute(self) -> None:
        of_fsdp = ("fsdp_config.activation_checkpointing", "fsdp_config.fsdp_activation_checkpointing")
        key = next(filter(self.switch, ("gradient_checkpointing", "activation_checkpointing", *of_fsdp)), None)
        off = self.switch("disable_gradient_checkpointing")
        if key is None and self.program.name == "llama-factory" and not off:
            key = "disable_gradient_checkpointing"
        if key is not None:
            self.take(key, "training.recompute", "full", "memory only")
        keys = ("gradient_checkpointing", "activation_checkpointing", "disable_gradient_checkpointing", *of_fsdp)
        self.equal(*keys, words="memory only")

    # --- layout and parts of the model

    def _sharding(self) -> None:
        """DeepSpeed and FSDP: the optimizer's state is shared; weights are shared by other means."""
        if self._tensor() > 1:
            self.take("parallelism_config.tp_size", "parallel.tensor", self._tensor())
        if self._context() > 1:
            keys = ("parallelism_config.cp_size", "parallelism_config.sp_size", "hyper_parallel_cp_size")
            key = max(keys, key=lambda one: self.whole(one) or 1)
            self.take(key, "parallel.context", self._context())
        self._unread_files()
        parts = [key for key in self.values if key.split(".")[0] in ("deepspeed", "fsdp", "fsdp_config")]
        named = [key for key in parts if (row := key_of(self.program, key)) is not None and row.treatment == "rule"]
        given = [key for key in named if self.values[key]]
        if not given:
            return
        stage = self._zero_stage()
        if stage == 0:
            self.equal(*named, words="ZeRO-0 shares nothing")
            return
        remark = "the state of the optimizer is shared, as in ZeRO-1"
        if stage != 1:
            remark += "; if the weights do not fit, raise parallel.tensor or parallel.pipeline"
        key = next((key for key in ("deepspeed", _STAGE) if self.values.get(key)), given[0])
        self.take(key, "parallel.distributed_optimizer", True, remark)
        self.equal(*named, words="parallel.distributed_optimizer: true")

    def _unread_files(self) -> None:
        """Tells of JSON files that are named and could not be read (config_file.py)."""
        for key in TRAINER_FILES:
            is_read = any(name.startswith(f"{key}.") for name in self.values)
            if isinstance(self.values.get(key), str) and self.value(key) and not is_read:
                words = (
                    "No JSON could be read there, and what it says of the schedule, the optimizer or batches is not in "
                    "the file. Bring it beside the configuration, and import again"
                )
                self.refuse(key, words)

    def _zero_stage(self) -> int | None:
        """The stage that DeepSpeed's configuration names; None where it is not known."""
        stage = self.values.get(_STAGE)
        return stage if isinstance(stage, int) else None

    def _frozen(self) -> None:
        kind, adapter = self.value("finetuning_type"), self.value("adapter")
        if adapter:
            self.refuse("adapter", _LORA)
        if kind == "full":
            self.equal("finetuning_type", words="all weights are trained")
        elif kind == "freeze":
            self._freeze()
        elif kind is not None:
            self.refuse("finetuning_type", _LORA)
        if self.switch("train_from_scratch"):
            self.take("train_from_scratch", "model.weights", "random")

    def _freeze(self) -> None:
        """The last, or with a negative number the first, layers are trained, without embeddings."""
        trained, chosen = self.whole("freeze_trainable_layers") or 2, self.value("freeze_trainable_modules")
        if self.shape is None or chosen not in ("all", None):
            words = "Parts are frozen by layers. Set model.frozen: bottom, top, embeddings"
            self.refuse("finetuning_type", words)
            return
        end, layers = ("bottom" if trained > 0 else "top"), max(0, self.shape.layers - abs(trained))
        self.take("freeze_trainable_layers", f"model.frozen.{end}", layers, "the other layers are trained")
        self.write("model.frozen.embeddings", not self.has("freeze_extra_modules"))
        self.note("finetuning_type", "taken", "model.frozen")
        if self.has("freeze_extra_modules"):
            self.refuse("freeze_extra_modules", "Embedding and output layer are trained. See model.frozen.embeddings")
        self.equal("freeze_trainable_modules", words="whole layers")

    def _rope(self) -> None:
        """LLaMA-Factory scales the positions by the whole factor that holds the length."""
        kind = self.value("rope_scaling")
        if kind is None or self.program.name != "llama-factory":
            return
        if self.shape is None or self.length is None or kind not in ("linear", "llama3", "yarn"):
            self.refuse("rope_scaling", "Positions are those of model.hf. Set model.rope for others")
        elif self.length <= self.shape.max_positions:
            self.equal("rope_scaling", words=f"the model reads {self.shape.max_positions} tokens as it is")
        else:
            factor = ceil(self.length / self.shape.max_positions)
            self.write("model.rope.max_position_embeddings", factor * self.shape.max_positions)
            self.write("model.rope.factor", factor)
            self.take("rope_scaling", "model.rope.scaling", kind, f"factor {factor}")
            if kind == "llama3":
                self.write("model.rope.extra", {"low_freq_factor": 1.0, "high_freq_factor": 4.0})


def _assume(datasets: Sequence[_Dataset], verb: str = "Say") -> str:
    names = " ".join(f"{one.name}=1B" for one in datasets if one.tokens is None)
    return f"{verb} how many tokens they have: `--assume {names}`."
