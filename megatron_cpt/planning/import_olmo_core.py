"""From a configuration of OLMo-core (config.json of a run or a checkpoint, or its YAML) to a run.yaml.

OLMo-core counts batches in tokens, decays every weight that no group leaves out, and names the ends of schedules as
shares of the peak. Its arrays of token ids are not read: documents are prepared again.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from megatron_cpt.config.errors import Fault, refuse
from megatron_cpt.planning.config_file import ConfigFile
from megatron_cpt.planning.config_keys import ConfigTranslation, find_model, roles
from megatron_cpt.planning.outcomes import Imported, ImportOptions, imported, validation_role
from megatron_cpt.planning.run_file import count_text, distinct_names, source_name

_OPTIM, _SCHEDULER = "train_module.optim", "train_module.scheduler"
_CHECKPOINTER, _EVALUATOR = "trainer.callbacks.checkpointer", "trainer.callbacks.lm_evaluator"
_SOURCES = "dataset.source_mixture_config.source_list.sources"
_REQUESTED = "dataset.source_mixture_config.requested_tokens"
_NO_SCHEDULE = "There is no such schedule. Choose one of docs/schedules.md (schedule.kind); the file has `constant`"


def import_olmo_core(config: ConfigFile, options: ImportOptions) -> Imported:
    """Translates a configuration. Raises BadInput for one that no run could be made of."""
    translation = _OlmoCoreTranslation(config, options)
    translation.translate()
    return imported(translation.entries, translation.outcomes)


class _OlmoCoreTranslation(ConfigTranslation):
    """A configuration on its way to a run.yaml."""

    def translate(self) -> None:
        """Every entry and every outcome."""
        self.shape = find_model(self, None)
        self.length = self._sequence_length()
        self.batch = self._sequences("data_loader.global_batch_size")
        refuse(self.faults)
        self.names, self.weights, self.limits = self._datasets()
        self.paths = [f"data/{name}" for name in self.names]
        self.replay = roles(self, self.names, self.paths)
        self.total = self._length()
        refuse(self.faults)
        self._run()
        self._sources()
        self._training()
        self._schedule()
        self._optimizer()
        self._layout()
        self._validation()
        self._checkpoints()
        self.compare_shape(self.shape)
        self.rest()
        refuse(self.faults)

    # --- batches and lengths

    def _sequence_length(self) -> int:
        keys = ("dataset.sequence_length", "train_module.max_sequence_length")
        key = next(filter(self.has, keys), None)
        if key is None:
            self.need(keys[0])
            return 1
        self.length = self.positive(key)
        self.take(key, "data.sequence_length", self.length)
        self.equal(*keys, words=f"data.sequence_length: {self.length}")
        return self.length

    def _sequences(self, key: str) -> int:
        """A batch in sequences, from one in tokens."""
        tokens = self.whole(key)
        if tokens is None:
            self.need(key)
            return 1
        if tokens % self.length or tokens < self.length:
            rule = f"is in tokens, and not whole sequences of {self.length}."
            self.faults.append(Fault(self.text(key), rule, "Mend one of them."))
        return max(1, tokens // self.length)

    def _length(self) -> int:
        """Tokens of the run."""
        amount, unit = self.positive("trainer.max_duration.value"), self.value("trainer.max_duration.unit")
        if unit == "steps":
            return amount * self.batch * self.length
        if unit == "tokens":
            return amount
        step = self.batch * self.length
        if self.weights is not None and (requested := self.whole(_REQUESTED)):
            return max(1, requested * amount // step) * step
        counts = [self.tokens_of(name, path) for name, path in zip(self.names, self.paths, strict=True)]
        known = [count for count in counts if count is not None]
        if len(known) < len(counts):
            rule = "is a length in epochs, and a run here has one in tokens; the datasets are not there."
            words = " ".join(f"{name}=1B" for name, count in zip(self.names, counts, strict=True) if count is None)
            remedy = f"Prepare them first, or say how many tokens they have: `--assume {words}`."
            self.faults.append(Fault(self.text("trainer.max_duration.value"), rule, remedy))
        return max(1, sum(known) * amount // step) * step

    # --- data

    def _datasets(self) -> tuple[list[str], list[float] | None, list[float] | None]:
        """Names of the sources, their weights and largest epochs, where they are mixed."""
        mixed = self.value(_SOURCES)
        if isinstance(mixed, list) and mixed and all(isinstance(one, dict) for one in mixed):
            names = distinct_names(source_name(str(one.get("source_name", "text"))) for one in mixed)
            weights = [float(one.get("target_ratio") or 0) for one in mixed]
            return names, weights, [float(one.get("max_repetition_ratio") or 1) for one in mixed]
        mix = self.value("dataset.mix")
        paths = self.value("dataset.paths")
        label = str(mix) if mix else source_name(str(paths[0]).removesuffix(".npy")) if paths else "text"
        return [source_name(label)], None, None

    def _sources(self) -> None:
        for number, (name, path) in enumerate(zip(self.names, self.paths, strict=True)):
            place = f"data.sources.{name}"
            self.write(f"{place}.paths", [path], "")
            if name in self.replay or path in self.replay:
                self.write(f"{place}.role", "replay", "")
            if self.weights is not None and self.limits is not None:
                self.write(f"{place}.weight", self.weights[number], "")
                if self.value("trainer.max_duration.unit") != "epochs":
                    self.write(f"{place}.max_epochs", self.limits[number], "")
        command = f"`megatron-cpt prepare FILES --tokenizer {self.model} --output {self.paths[0]}`"
        words = f"data.sources: {', '.join(self.names)}; its arrays of ids are not read, first {command}"
        if self.weights is not None:
            words += "; shares of tokens, as there"
        keys = (_SOURCES, "dataset.mix", "dataset.paths")
        named = next(filter(self.has, keys), None)
        if named is not None:
            self.note(named, "taken", words)
        elif self.has("dataset"):
            self.refuse("dataset", f"Lists of instance sources are not read. In the file there is {words}")
        self.equal(*keys, words="another key names the text")
        kind = str(self.values.get("dataset._CLASS_") or "")
        packed = "Packed" in kind
        if self.switch("dataset.generate_doc_lengths") or packed:
            self.write("data.attention", "within_documents", "no document sees another")
            self.equal("dataset.generate_doc_lengths", words="data.attention: within_documents")
        if packed:
            self.write("data.packing", "best_fit", "whole documents in each sequence")
        self.equal("dataset.generate_doc_lengths", words="data.attention: across_documents")

    # --- training

    def _run(self) -> None:
        folder = str(self.value("trainer.save_folder") or "").rstrip("/")
        here = folder if "://" not in folder else f"runs/{folder.rpartition('/')[2]}"
        place = self.options.folder or (f"{here}-cpt" if folder else "runs/imported")
        if folder:
            self.take("trainer.save_folder", "run.folder", place, "a folder of its own")
        else:
            self.write("run.folder", place)
        self.take("data_loader.seed", "run.seed", self.whole("data_loader.seed"), "another order than there")
        self.take("trainer.metrics_collect_interval", "run.log_interval", f"{self._interval()} steps")
        wandb = "trainer.callbacks.wandb"
        if self.values.get(f"{wandb}.enabled") is not False and self.has(f"{wandb}.project"):
            self.take(f"{wandb}.project", "run.wandb_project", str(self.value(f"{wandb}.project")))
        self.equal(f"{wandb}.enabled", f"{wandb}.project", words="run.wandb_project says it")

    def _interval(self) -> int:
        return self.whole("trainer.metrics_collect_interval") or 5

    def _training(self) -> None:
        unit, key = self.value("trainer.max_duration.unit"), "trainer.max_duration.value"
        amount = self.positive(key)
        step = self.batch * self.length
        told = f"{self.total:,} tokens"
        if unit == "tokens":
            self.take(key, "training.tokens", count_text(self.total), "rounded to whole steps")
        else:
            self.take(key, "training.tokens", f"{self.total // step} steps", told, told)
        if unit == "epochs" and self.weights is None:
            self.write(f"data.sources.{self.names[0]}.epochs", amount, "")
        if unit == "epochs" and self.weights is not None and self.has(_REQUESTED):
            self.note(_REQUESTED, "taken", f"training.tokens: {told}, the tokens of an epoch times {amount}")
        self.equal("trainer.max_duration.unit", words=f"training.tokens, from {unit}")
        global_key, micro_key = "data_loader.global_batch_size", "train_module.rank_microbatch_size"
        self.take(global_key, "training.global_batch_size", self.batch, f"sequences of {self.length} tokens")
        if self.has(micro_key):
            self.take(micro_key, "training.micro_batch_size", self._sequences(micro_key), "sequences")
        self._precision()
        if self.has("train_module.z_loss_multiplier"):
            rate = self.number("train_module.z_loss_multiplier")
            self.take("train_module.z_loss_multiplier", "training.z_loss", rate)
        self._recompute()

    def _precision(self) -> None:
        keys = ("train_module.dp_config.param_dtype", "train_module.autocast_precision")
        key = next((key for key in keys if "bfloat16" in str(self.value(key))), None)
        if key is not None:
            self.take(key, "training.precision", "bf16", "main weights stay in fp32")
        else:
            self.write("training.precision", "fp32")
        self.equal(*keys, words="training.precision says it")
        if self.switch("train_module.float8_config.enabled"):
            words = "fp8 was not tried here. To try it, set megatron.transformer.fp8 and what it needs"
            self.refuse("train_module.float8_config.enabled", words)

    def _recompute(self) -> None:
        if not any(key.startswith("train_module.ac_config") and value for key, value in self.values.items()):
            return
        mode = str(self.value("train_module.ac_config.mode"))
        kind = "full" if mode == "full" else "selective"
        self.take("train_module.ac_config.mode", "training.recompute", kind, f"memory only; {mode} there")

    # --- learning rate

    def _class(self, place: str) -> str:
        """The name of a section's class: OLMo-core writes the class, a YAML file its registered name."""
        named = self.values.get(f"{place}._CLASS_") or self.values.get(f"{place}.type") or ""
        return str(named).rpartition(".")[2].replace("_", "").lower()

    def _schedule(self) -> None:
        self.peak = self.number(f"{_OPTIM}.lr") or 0.0
        self.take(f"{_OPTIM}.lr", "schedule.peak_lr", self.peak)
        rules: dict[str, Callable[[], None]] = {
            "coswithwarmup": lambda: self._falling("cosine"),
            "linearwithwarmup": lambda: self._falling("linear"),
            "wsd": self._stable,
            "constantwithwarmup": self._constant,
            "constantscheduler": self._constant,
            "constant": self._constant,
        }
        kind = self._class(_SCHEDULER)
        named = f"{_SCHEDULER}._CLASS_" if f"{_SCHEDULER}._CLASS_" in self.values else f"{_SCHEDULER}.type"
        if kind in rules:
            rules[kind]()
            self.note(named, "taken", f"schedule.kind: {self.entries_by_key()['schedule.kind']}")
        else:
            self.write("schedule.kind", "constant", "")
            if kind:
                self.refuse(named, _NO_SCHEDULE)
        self._warmup()
        self.equal(f"{_SCHEDULER}.units", words="lengths keep their unit")
        self.equal(f"{_SCHEDULER}._CLASS_", f"{_SCHEDULER}.type", words="the same class")

    def entries_by_key(self) -> dict[str, Any]:
        """Values of the run.yaml so far."""
        return {entry.key: entry.value for entry in self.entries}

    def _span(self, *keys: str) -> Iterator[tuple[str, int]]:
        """The first of some keys that is given, and its length in tokens. A fraction is one of the run."""
        for key in keys:
            name = f"{_SCHEDULER}.{key}"
            if self.has(name) and (amount := self.number(name)) is not None:
                if key.endswith("fraction"):
                    amount *= self.total
                elif self.value(f"{_SCHEDULER}.units") == "steps":
                    amount *= self.batch * self.length
                yield name, int(amount)
                return

    def _warmup(self) -> None:
        keys = ("warmup", "warmup_steps", "warmup_fraction")
        for key, tokens in self._span(*keys):
            if tokens:
                self.take(key, "schedule.warmup", self._duration(tokens), f"{tokens:,} tokens")
                if lowest := self.number(f"{_SCHEDULER}.warmup_min_lr"):
                    self.take(f"{_SCHEDULER}.warmup_min_lr", "schedule.initial_lr", lowest)
        self.equal(*(f"{_SCHEDULER}.{key}" for key in (*keys, "warmup_min_lr")), words="schedule.warmup says it")

    def _duration(self, tokens: int) -> int | str:
        step = self.batch * self.length
        return f"{tokens // step} steps" if tokens % step == 0 else count_text(tokens)

    def _constant(self) -> None:
        self.write("schedule.kind", "constant", "")

    def _falling(self, kind: str) -> None:
        """A cosine or a line to a share of the peak, at the end of the run or at another place."""
        self.write("schedule.kind", kind, "")
        share = self.number(f"{_SCHEDULER}.alpha_f") or 0.0
        for key, end in self._span("t_max"):
            if end != self.total:
                self.take(key, "schedule.tokens", self._duration(end), f"{end / self.total:.4g} times the run")
        self.equal(f"{_SCHEDULER}.t_max", words="the schedule ends with the run")
        final = float(f"{share * self.peak:.6g}")
        self.take(f"{_SCHEDULER}.alpha_f", "schedule.final_lr", final, f"{share:g} of the peak")

    def _stable(self) -> None:
        self.write("schedule.kind", "wsd", "")
        self.write("schedule.decay_shape", "linear")
        final = self.number(f"{_SCHEDULER}.decay_min_lr") or 0.0
        self.take(f"{_SCHEDULER}.decay_min_lr", "schedule.final_lr", final)
        keys = ("decay", "decay_steps", "decay_fraction")
        for key, tokens in self._span(*keys):
            self.take(key, "schedule.decay", self._duration(tokens), f"{tokens:,} tokens")
        self.equal(*(f"{_SCHEDULER}.{key}" for key in keys), words="schedule.decay says it")

    # --- optimizer and layout

    def _optimizer(self) -> None:
        kind = self._class(_OPTIM)
        named = f"{_OPTIM}._CLASS_" if f"{_OPTIM}._CLASS_" in self.values else f"{_OPTIM}.type"
        if "skipstep" in kind:
            self.write("training.on_spike", "skip", "by the loss; there by the gradient's norm too")
            for key, place in (("sigma_factor", "spike_sigmas"), ("rolling_interval_length", "spike_window")):
                self.take(f"{_OPTIM}.{key}", f"training.{place}", self.whole(f"{_OPTIM}.{key}"))
        if kind and "adamw" not in kind:
            self.refuse(named, "Only AdamW is there. Choose schedule.peak_lr for it")
        betas = self.numbers(f"{_OPTIM}.betas")
        if len(betas) == 2:
            for beta, place in zip(betas, ("beta1", "beta2"), strict=True):
                self.write(f"optimizer.{place}", beta)
            self.note(f"{_OPTIM}.betas", "taken", f"optimizer.beta1, optimizer.beta2: {betas[0]:g}, {betas[1]:g}")
        else:
            self.faults.append(Fault(self.text(f"{_OPTIM}.betas"), "are not two numbers.", "Write two."))
        for key, place in (("eps", "epsilon"), ("weight_decay", "weight_decay")):
            self.take(f"{_OPTIM}.{key}", f"optimizer.{place}", self.number(f"{_OPTIM}.{key}"))
        self._no_weight_decay()
        clip = self.number("train_module.max_grad_norm") or 0.0
        self.take("train_module.max_grad_norm", "optimizer.clip_grad", clip, "" if clip else "no clipping there")
        self.equal(f"{_OPTIM}._CLASS_", f"{_OPTIM}.type", words="AdamW")

    def _no_weight_decay(self) -> None:
        """Groups without decay. OLMo-core decays norms too, which is not usual."""
        key = f"{_OPTIM}.group_overrides"
        groups = self.value(key) or []
        parts: list[str] = []
        for group in groups if isinstance(groups, list) else []:
            options = group.get("opts") if isinstance(group, dict) else None
            named = list(_parts(group.get("params") or [])) if isinstance(group, dict) else []
            if options == {"weight_decay": 0.0} and None not in named:
                parts += [part for part in named if part is not None and part not in parts]
            else:
                words = "A group has other options, or other weights, than are left without decay here. See "
                self.refuse(key, f"{words}optimizer.no_weight_decay and optimizer.lr_multipliers")
        self.write("optimizer.no_weight_decay", parts, "norms have weight decay there")
        if groups:
            self.note(key, "taken", f"optimizer.no_weight_decay: {', '.join(parts)}")

    def _layout(self) -> None:
        kind = self.value("train_module.dp_config.name")
        if kind in ("fsdp", "hsdp"):
            remark = "the optimizer's state is shared; if weights do not fit, raise parallel.tensor or .pipeline"
            self.take("train_module.dp_config.name", "parallel.distributed_optimizer", True, remark)
        self.equal("train_module.dp_config.name", words="every rank has the whole optimizer")

    # --- evaluation and checkpoints

    def _validation(self) -> None:
        paths, mix = self.value(f"{_EVALUATOR}.eval_dataset.paths"), self.value(f"{_EVALUATOR}.eval_dataset.mix")
        labels = [str(mix)] if mix else [str(path).removesuffix(".npy") for path in paths or []]
        names = distinct_names(map(source_name, labels))
        sources = dict(zip(self.names, self.paths, strict=True))
        replay = {name for name, path in sources.items() if {name, path} & set(self.replay)}
        for name in names:
            self.write(f"validation.sets.{name}.paths", [f"data/{name}"], "")
            role = validation_role(name, f"data/{name}", sources, replay) or "general"
            self.write(f"validation.sets.{name}.role", role, "`general` is text like that of pretraining")
        keys = (f"{_EVALUATOR}.eval_dataset.mix", f"{_EVALUATOR}.eval_dataset.paths")
        if names:
            self.note(keys[0] if mix else keys[1], "taken", f"validation.sets: {', '.join(names)}; prepare them first")
        self.equal(*keys, words="another key names the sets")
        steps = self.whole(f"{_EVALUATOR}.eval_interval")
        if names and steps:
            self.take(f"{_EVALUATOR}.eval_interval", "validation.eval_interval.every", f"{steps} steps")
        self.equal(f"{_EVALUATOR}.eval_interval", words="there are no sets")

    def _checkpoints(self) -> None:
        kept, passing = (self.whole(f"{_CHECKPOINTER}.{key}") for key in ("save_interval", "ephemeral_save_interval"))
        if passing:
            key = f"{_CHECKPOINTER}.ephemeral_save_interval"
            self.take(key, "checkpoint.save_interval", f"{passing} steps", "the newest are kept")
            if kept and kept % passing == 0:
                self.take(f"{_CHECKPOINTER}.save_interval", "checkpoint.keep_every", f"{kept} steps")
            elif kept:
                words = f"{kept} is no multiple of {passing}. Set checkpoint.keep_every to one"
                self.refuse(f"{_CHECKPOINTER}.save_interval", words)
        elif kept:
            self.take(f"{_CHECKPOINTER}.save_interval", "checkpoint.save_interval", f"{kept} steps")
            self.write("checkpoint.keep_every", f"{kept} steps", "none is removed there")
        if self.has(f"{_CHECKPOINTER}.save_async"):
            self.take(
                f"{_CHECKPOINTER}.save_async", "checkpoint.async_save", self.switch(f"{_CHECKPOINTER}.save_async")
            )


def _parts(patterns: Sequence[Any]) -> Iterator[str | None]:
    """Parts of `optimizer.no_weight_decay` that OLMo-core's names of weights stand for; None for others."""
    for pattern in patterns:
        text = str(pattern)
        yield "embedding" if "embeddings" in text else "norms_and_biases" if "norm" in text or "bias" in text else None
