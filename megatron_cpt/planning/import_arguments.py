"""From the arguments of Megatron-LM's pretrain_gpt.py to a run.yaml, and what became of each of them.

1. Rules of several arguments (batch, length, data, ...) are written out below, those of the learning rate in
   import_schedule.py.
2. All other arguments are treated as the table of megatron_lm_arguments.py says.

A value that Megatron-LM takes by default and that differs from ours is written too. docs/migrating.md has the table.
"""

from collections.abc import Iterator, Sequence
from math import isclose
from pathlib import Path

import orjson

from megatron_cpt.config.errors import BadInput, Fault, refuse
from megatron_cpt.config.units import Batches, ramp_up
from megatron_cpt.families.family import ModelShape
from megatron_cpt.families.shape import read_shape
from megatron_cpt.planning.argument_translation import ArgumentTranslation
from megatron_cpt.planning.audit import audit, read_blend, split_spans
from megatron_cpt.planning.import_schedule import Lengths, translate_schedule
from megatron_cpt.planning.megatron_lm_arguments import Given, by_flag
from megatron_cpt.planning.megatron_lm_checkpoint import Progress
from megatron_cpt.planning.outcomes import (
    HOLD_OUT,
    Imported,
    ImportOptions,
    Outcome,
    imported,
    short,
    validation_role,
)
from megatron_cpt.planning.run_file import count_text, distinct_names, source_name
from megatron_cpt.runs.checkpoint_state import find_state, is_complete


def import_arguments(
    given: Sequence[Given], options: ImportOptions, compare_defaults: bool = True, progress: Progress | None = None
) -> Imported:
    """Translates an argument list. Raises BadInput for one that no run could be made of.

    Args:
        compare_defaults: whether arguments of the model's shape that are not given have Megatron-LM's defaults.
        progress: how far the run had come that is to be continued. None: a run begins.
    """
    translation = _Translation(given, options, compare_defaults, progress)
    translation.translate()
    return imported(translation.entries, translation.outcomes)


_REMEDIES = {"zero_centered_norms": "It is the same function with its weights stored less 1: leave it out"}
"""Where a model that differs in a field may be the one that is meant."""
_OF_LATENT_ATTENTION = ("--q-lora-rank", "--kv-lora-rank", "--qk-head-dim", "--qk-pos-emb-head-dim", "--v-head-dim")


class _Translation(ArgumentTranslation):
    """The rules of several arguments, and the table for all others."""

    def __init__(
        self, given: Sequence[Given], options: ImportOptions, compare_defaults: bool, progress: Progress | None
    ) -> None:
        super().__init__(given)
        self.options, self.compare_defaults, self.progress = options, compare_defaults, progress
        self.sequence_length, self.micro_batch = (self.value(flag) for flag in ("--seq-length", "--micro-batch-size"))
        self.checkpoint: Path | None = None
        named = self._model()
        refuse(list(self._missing(named)))
        assert named is not None, "checked"
        self.model = named
        self.batch = self._global_batch()
        self.batches, self.steps = self._length()
        if self.progress is not None:
            self._continue(self.progress)
        self.shape: ModelShape = read_shape(self.model)

    # --- what must be there

    def _model(self) -> str | None:
        if self.options.model is not None:
            folder = Path(self.options.model)
            if not is_complete(folder):
                return self.options.model
            self.checkpoint = folder
            return str(folder / "hf")
        named = self.value("--tokenizer-model")
        fits = self.value("--tokenizer-type") == "HuggingFaceTokenizer" and named
        return named if fits and Path(named, "config.json").is_file() else None

    def _missing(self, model: str | None) -> Iterator[Fault]:
        if model is None:
            remedy = "Give the model with --model; `megatron-cpt convert` makes a folder of a Megatron checkpoint."
            yield Fault("--model", "no Hugging Face folder is named.", remedy)
        elif not Path(model, "config.json").is_file():
            yield Fault(f"--model {model}", "there is no config.json in it.", "Name a Hugging Face folder.")
        for flag in ("--seq-length", "--micro-batch-size", "--lr"):
            if self.value(flag) is None:
                yield Fault(flag, "was not given, and Megatron-LM needs it too.", "Add it.")
        for flag in ("--seq-length", "--micro-batch-size", "--global-batch-size", "--train-iters", "--train-samples"):
            if self.has(flag) and self.value(flag) < 1:
                yield Fault(self.given[flag].text, "is no size of a run.", "Write 1 or more.")
        if not self.has("--train-iters") and not self.has("--train-samples"):
            yield Fault("--train-iters, --train-samples", "neither was given.", "Add one of them.")
        if self.value("--global-batch-size") is None and self.options.ranks is None:
            rule = "was not given: it is then the micro batch times the data-parallel size, which is not known."
            yield Fault("--global-batch-size", rule, "Add it, or give --nproc.")
        if not any(map(self.has, _DATA)):
            yield Fault("--data-path", "was not given: a run needs datasets.", "Add it: `... -- --data-path PREFIX`.")

    def _global_batch(self) -> int:
        if (size := self.value("--global-batch-size")) is not None:
            return int(size)
        shared = 1
        for flag in ("--tensor-model-parallel-size", "--pipeline-model-parallel-size", "--context-parallel-size"):
            shared *= self.value(flag)
        return int(self.micro_batch * max(1, (self.options.ranks or 1) // shared))

    def _length(self) -> tuple[Batches, int]:
        """Sequences of each step, and how many steps there are."""
        ramp = self.value("--rampup-batch-size")
        length = self.sequence_length
        pieces = ramp_up(ramp[0], ramp[1], ramp[2] * length, self.batch, length) if ramp else ()
        batches = Batches(self.batch, pieces)
        samples = self.value("--train-samples")
        return batches, batches.whole_steps(samples) if samples is not None else self.value("--train-iters")

    def _continue(self, progress: Progress) -> None:
        """Leaves the steps that the run has not done yet; all of them where it has done them all."""
        samples, shown = self.value("--train-samples"), f"iteration {progress.iteration:,} of the checkpoint"
        whole, left = self.steps, self.steps - progress.iteration
        ramp = self.value("--rampup-batch-size")
        if samples is not None:
            left = (samples - progress.samples) // self.batch
        kept = find_state(self.checkpoint) if self.checkpoint is not None else None
        if kept is not None and kept.updates is not None and kept.step != progress.iteration:
            rule = f"is of iteration {kept.step:,}, and what is to be continued of {progress.iteration:,}."
            raise BadInput(Fault(f"--model {self.checkpoint}", rule, "Convert that one: `convert from-megatron`."))
        if left < 1:
            self.progress = None
            words = f"the run has done its {whole:,} steps: the run.yaml has all of them, from the beginning"
            self.outcomes.append(Outcome(shown, "equal", words))
            return
        if ramp and progress.samples < ramp[2]:
            words = (
                f"The batches grow until sample {ramp[2]:,}, and here they have {self.batch} sequences at once. "
                "Continue from a later checkpoint, or set training.batch_size_rampup"
            )
            self.refuse("--rampup-batch-size", words)
        self.equal("--rampup-batch-size", "the batches have their full size by now")
        self.batches, self.steps = Batches(self.batch), left
        self.outcomes.append(Outcome(shown, "taken", f"training.tokens: the {left:,} steps that are left"))
        self.equal("--load", "the run goes on from the checkpoint itself")

    # --- the rules

    def translate(self) -> None:
        """Every key and every outcome."""
        for part in (self._run, self._model_part, self._data, self._training, self._schedule, self._optimizer):
            part()
        self._parallel()
        self._validation()
        for flag in self.given:
            if flag not in self._noted:
                self._by_table(flag)
        for each in self.unknown:
            words = "is no argument of Megatron-LM's core 0.16.1. See what it does in your copy"
            self.outcomes.append(Outcome(each.text, "unknown", words))

    def _run(self) -> None:
        save = self.value("--save")
        folder = self.options.folder or (f"{save.rstrip('/')}-cpt" if save else "runs/imported")
        if save:
            self.take("--save", "run.folder", folder, "a folder of its own")
        else:
            self.write("run.folder", folder)
        if self.value("--profile"):
            steps = f"{self.value('--profile-step-start')}-{self.value('--profile-step-end')}"
            self.take("--profile", "run.profile", steps)
            if self.has("--profile-ranks"):
                self.take("--profile-ranks", "run.profile_ranks", self.value("--profile-ranks"))
        for flag in ("--profile-step-start", "--profile-step-end", "--profile-ranks"):
            self.equal(flag, "it belongs to --profile")
        minutes = self.value("--exit-duration-in-mins")
        if minutes is not None:
            self.take("--exit-duration-in-mins", "stop.after", f"{minutes}m")

    def _model_part(self) -> None:
        if self.value("--tokenizer-model") == self.model:
            self.take("--tokenizer-model", "model.hf", self.model)
        else:
            self.write("model.hf", self.model)
        for flag in ("--tokenizer-type", "--tokenizer-model"):
            self.equal(flag, "the tokenizer is that of model.hf; the manifest of a dataset names the one that made it")
        hidden, attention = self.value("--hidden-dropout"), self.value("--attention-dropout")
        if hidden == attention:
            flag = "--hidden-dropout"
            if hidden or self.has(flag):
                self.take(
                    flag, "model.dropout", hidden, "of hidden states and of attention; continual pretraining uses 0"
                )
            self.equal("--attention-dropout", f"model.dropout: {short(hidden)}")
        else:
            for flag in ("--hidden-dropout", "--attention-dropout"):
                self.refuse(flag, "There is one rate for both: model.dropout. Set it; continual pretraining uses 0")
        if self.has("--num-layers"):
            for name, argument in by_flag().items():
                if argument.treatment == "shape" and name == argument.flag:
                    self._compare(name, argument.words)
        rate = "--moe-router-bias-update-rate"
        if self.has("--moe-router-enable-expert-bias") and not self.has(rate):
            self.take(rate, "megatron.transformer.moe_router_bias_update_rate", self.value(rate), "Megatron-LM's")

    def _compare(self, flag: str, field: str) -> None:
        """What the arguments say of the model beside its config.json. A default counts where it is not the model's."""
        negated, name = field.startswith("not "), field.removeprefix("not ")
        here = getattr(self.shape, name)
        said = self.value(flag)
        if isinstance(said, list):
            said = said[0] if said else None
        if not self.has(flag) and (said is None or not self.compare_defaults):
            return
        if flag.startswith("--moe") and not self.shape.experts and not self.has(flag):
            return
        if flag in _OF_LATENT_ATTENTION and not self.shape.latent_attention:
            self.equal(flag, "it belongs to latent attention, which the model does not have")
            return
        if flag in ("--num-query-groups", "--moe-router-topk", "--num-experts") and not self.has(flag):
            return
        if isinstance(said, bool):
            said = said is not negated
        same = isclose(said, here, rel_tol=1e-9) if isinstance(said, float | int) else said == here
        if same:
            self.equal(flag, f"model.hf: config.json says so ({name} {short(here)})")
        else:
            remedy = _REMEDIES.get(name, "Give the model that is meant with --model")
            self.refuse(flag, f"config.json of {self.model} has {name} {short(here)}. {remedy}")

    def _data(self) -> None:
        self.take("--seq-length", "data.sequence_length", self.sequence_length)
        if self.value("--reset-attention-mask"):
            self.take("--reset-attention-mask", "data.attention", "within_documents")
        self.equal("--reset-position-ids", "rotary positions count from any beginning: only distances matter")
        if self.value("--eod-mask-loss"):
            remark = "the token after an end of document does not count"
            self.take("--eod-mask-loss", "data.loss_mask.document_starts", False, remark)
        train, valid = self._blends()
        self.validation_paths = valid
        flag = next(filter(self.has, _DATA))
        self._sources(flag, train)
        if flag in _SPLIT_BY_SHARES:
            self._split()

    def _blends(self) -> tuple[list[str], list[str]]:
        """The words of the training and of the validation blend."""
        train: list[str] = self.value("--train-data-path") or self.value("--data-path") or []
        valid: list[str] = self.value("--valid-data-path") or []
        if self.has("--data-args-path"):
            train = _read_text("--data-args-path", self.value("--data-args-path")).split()
        if self.has("--per-split-data-args-path"):
            path = self.value("--per-split-data-args-path")
            try:
                parts = orjson.loads(_read_text("--per-split-data-args-path", path))
                words = {
                    name: value.split() if isinstance(value, str) else list(value or [])
                    for name, value in parts.items()
                }
            except (ValueError, AttributeError, TypeError) as error:
                fault = Fault(f"--per-split-data-args-path {path}", "is no JSON object of blends.", "Mend it.")
                raise BadInput(fault) from error
            train, valid = words.get("train", []), words.get("valid", [])
        return train, valid

    def _sources(self, flag: str, words: Sequence[str]) -> None:
        prefixes, weights = read_blend(flag, words)
        names = distinct_names(map(source_name, prefixes))
        self.sources = dict(zip(names, prefixes, strict=True))
        others = [name for name in self.options.replay if name not in (*prefixes, *names)]
        refuse([Fault(f"--replay {name}", f"is no prefix of {flag}.", "Name one of them.") for name in others])
        read = self._passes_read(flag, prefixes, weights)
        if weights is None and not self.options.replay:
            key = f"data.sources.{names[0]}.paths"
            self.take(flag, key, prefixes, "read as one source, each dataset once an epoch", read.get(prefixes[0]))
        else:
            for number, (name, prefix) in enumerate(zip(names, prefixes, strict=True)):
                self.write(f"data.sources.{name}.paths", [prefix], read.get(prefix, ""))
                if weights is not None:
                    self.write(f"data.sources.{name}.weight", weights[number], "")
                if prefix in self.options.replay or name in self.options.replay:
                    self.write(f"data.sources.{name}.role", "replay", "")
            self.note(flag, "taken", f"data.sources: {', '.join(names)}; weights are shares of tokens")
        for other in _DATA:
            self.equal(other, f"{flag} is read instead")

    def _passes_read(self, flag: str, prefixes: Sequence[str], weights: Sequence[float] | None) -> dict[str, str]:
        """How often a run that is underway has read each dataset: a comment each. Nothing where one is not here."""
        if self.progress is None:
            return {}
        whole, seen = self._whole_samples(), self.progress.samples
        spans = split_spans(self.value("--split") or _SPLIT) if flag in _SPLIT_BY_SHARES else split_spans("1")
        words = "Sources are read from their beginning, in another order: what the run has read is read again. "
        try:
            rows = audit(prefixes, weights, max(whole, seen), self.sequence_length, spans)
        except BadInput:
            told = f"`megatron-cpt audit {flag} ... --train-samples {seen}` tells how much, where the datasets are"
            self.outcomes.append(Outcome(f"{seen:,} samples read", "refused", f"{words}{told}"))
            return {}
        passes = {row.prefix: row.passes * seen / max(whole, seen) for row in rows}
        told = ", ".join(f"{prefix} {count:.3g}" for prefix, count in passes.items())
        limit = "Where max_epochs is to limit all reading, take these from it"
        self.outcomes.append(
            Outcome(f"{seen:,} samples read", "refused", f"{words}Passes over each so far: {told}. {limit}")
        )
        return {prefix: f"Read {count:.3g} times before this run" for prefix, count in passes.items()}

    def _whole_samples(self) -> int:
        """Samples of the whole run, as the arguments have it."""
        samples = self.value("--train-samples")
        return int(samples if samples is not None else self.value("--train-iters") * self.batch)

    def _split(self) -> None:
        split = self.value("--split") or _SPLIT
        try:
            shares = [float(share) for share in split.replace(",", " ").split()]
        except ValueError:
            shares = []
        if not sum(shares) > 0:
            raise BadInput(Fault(f"--split {split}", "holds no shares.", "Write them as Megatron-LM does: 99,1,0."))
        if len(shares) == 1 or not any(shares[1:]):
            self.equal("--split", "the whole of every dataset is for training")
            return
        first = shares[0] / sum(shares)
        words = (
            f"Megatron-LM trains on the first {first:.2%} of the documents of each dataset; here a source is read "
            f"whole. Validation sets are datasets of their own: {HOLD_OUT}"
        )
        self.refuse("--split", words)

    def _training(self) -> None:
        samples = self.value("--train-samples")
        flag = "--train-iters" if samples is None else "--train-samples"
        tokens = self.batches.total(self.steps) * self.sequence_length
        self.take(flag, "training.tokens", f"{self.steps} steps", f"{tokens:,} tokens", f"{tokens:,} tokens")
        if self.has("--global-batch-size"):
            self.take("--global-batch-size", "training.global_batch_size", self.batch)
        else:
            self.write("training.global_batch_size", self.batch, "micro batch times data-parallel size")
        self.take("--micro-batch-size", "training.micro_batch_size", self.micro_batch)
        if (ramp := self.value("--rampup-batch-size")) and self.progress is None:
            start, increment, length = ramp
            place = "training.batch_size_rampup"
            self.write(f"{place}.start", start)
            self.write(f"{place}.increment", increment)
            self.write(f"{place}.tokens", length * self.sequence_length)
            self.note("--rampup-batch-size", "taken", f"{place}: from {start} by {increment}")
        bf16 = self.value("--bf16") or self.value("--fp16")
        self.write("training.precision", "bf16" if bf16 else "fp32", "")
        if self.has("--bf16"):
            self.note("--bf16", "taken", "training.precision: bf16")
        self._recompute()

    def _recompute(self) -> None:
        granularity = self.value("--recompute-granularity") or (
            "selective" if self.value("--recompute-activations") else None
        )
        flag = "--recompute-granularity" if self.has("--recompute-granularity") else "--recompute-activations"
        if granularity in ("selective", "full"):
            self.take(flag, "training.recompute", granularity)
        elif granularity is not None:
            self.refuse(flag, "Megatron-LM knows `full` and `selective`. Choose `training.recompute`")
        for other in ("--recompute-activations", "--recompute-method", "--recompute-num-layers", "--recompute-modules"):
            self.equal(other, "memory only: `full` computes all layers again, `selective` the MLP or the experts")

    def _schedule(self) -> None:
        whole = self._whole_samples() if self.progress is not None else self.batches.total(self.steps)
        translate_schedule(self, Lengths(self.batch, self.sequence_length, whole, self.progress))

    # --- optimizer, layout, evaluation

    def _optimizer(self) -> None:
        start, end = self.value("--start-weight-decay"), self.value("--end-weight-decay")
        decay = self.value("--weight-decay")
        if start is not None and start == end:
            decay = start
            self.equal("--weight-decay", "--start-weight-decay and --end-weight-decay are read instead")
            self.take("--start-weight-decay", "optimizer.weight_decay", decay)
            self.equal("--end-weight-decay", "the same as at the start")
        else:
            self.take("--weight-decay", "optimizer.weight_decay", decay)
            for flag in ("--start-weight-decay", "--end-weight-decay"):
                if self.has(flag):
                    self.refuse(flag, "Weight decay stays the same in a run. Set optimizer.weight_decay")
        for flag in ("--adam-beta1", "--adam-beta2", "--adam-eps", "--clip-grad"):
            self.take(flag, by_flag()[flag].words, self.value(flag))
        self._decoupled()
        self._moments()

    def _moments(self) -> None:
        """Weights and state of Adam that a converted checkpoint has; without one the moments of the beginning."""
        kept = None
        if self.checkpoint is not None:
            self.write("init_from.checkpoint", str(self.checkpoint))
            kept = find_state(self.checkpoint)
        if self.progress is None:
            return
        if self.checkpoint is None:
            words = (
                "the run begins with the weights of --model. Where they are not those of this iteration, convert it: "
                "`megatron-cpt convert from-megatron` (or `to-hf`), then --model OUTPUT"
            )
            self.outcomes.append(Outcome(f"weights of iteration {self.progress.iteration:,}", "refused", words))
        if kept is None or kept.updates is None:
            self.write(
                "optimizer.moment_warmup_steps", _MOMENT_WARMUP, "Fills Adam's moments, which are not taken over"
            )
            words = (
                f"optimizer.moment_warmup_steps: {_MOMENT_WARMUP} fills the moments anew. `megatron-cpt convert "
                "from-megatron CHECKPOINT OUTPUT --hf-config DIR` takes them over: then --model OUTPUT"
            )
            self.outcomes.append(Outcome("state of Adam", "refused", words))
            return
        self.write("init_from.load_optimizer", True)
        if not self.has("--use-distributed-optimizer"):
            self.write("parallel.distributed_optimizer", True, "The optimizer state of init_from.checkpoint needs it")
        words = f"init_from.load_optimizer: main weights and moments after {kept.updates:,} updates"
        self.outcomes.append(Outcome("state of Adam", "taken", words))

    def _decoupled(self) -> None:
        rate, lowest = self.value("--decoupled-lr"), self.value("--decoupled-min-lr")
        if rate is None:
            return
        factor, final = rate / self.value("--lr"), self.value("--min-lr")
        if lowest is not None and not isclose(lowest, final * factor, rel_tol=1e-3, abs_tol=1e-12):
            words = (
                f"Embedding and output layer have a factor on the schedule's rate; {rate:g} would be {factor:.4g}, and "
                f"{lowest:g} at the end another. Set optimizer.lr_multipliers.embedding and .output"
            )
            for flag in ("--decoupled-lr", "--decoupled-min-lr"):
                if self.has(flag):
                    self.refuse(flag, words)
            return
        for part in ("embedding", "output"):
            self.write(f"optimizer.lr_multipliers.{part}", float(f"{factor:.6g}"))
        self.note("--decoupled-lr", "taken", f"optimizer.lr_multipliers: embedding and output {factor:.6g}")
        self.equal("--decoupled-min-lr", "the same factor")

    def _parallel(self) -> None:
        tensor = self.value("--tensor-model-parallel-size")
        layers = self.value("--num-layers-per-virtual-pipeline-stage")
        if layers is not None:
            chunks = self.shape.layers // (self.value("--pipeline-model-parallel-size") * layers)
            self.take("--num-layers-per-virtual-pipeline-stage", "parallel.virtual_pipeline", chunks)
        expert = self.value("--expert-tensor-parallel-size")
        if expert is not None:
            if expert == tensor:
                self.equal("--expert-tensor-parallel-size", "experts are divided as the other layers are")
            else:
                words = "Experts are divided by parallel.tensor as the other layers are. Use parallel.expert"
                self.refuse("--expert-tensor-parallel-size", words)
        if self.value("--sequence-parallel") and tensor == 1:
            self.equal("--sequence-parallel", "there is one tensor-parallel rank")

    def _validation(self) -> None:
        sequences = self.value("--eval-iters") * self.batch
        tokens = sequences * self.sequence_length
        if not self.validation_paths:
            if tokens and (self.has("--eval-iters") or self.has("--eval-interval")):
                words = (
                    f"Each evaluation reads {sequences:,} other sequences there. Here a set is the same each time: "
                    f"name it, with validation.sets.NAME.tokens: {short(count_text(tokens))} for as many. {HOLD_OUT}"
                )
                self.refuse("--eval-iters", words)
            self.equal("--eval-iters", "no evaluations")
            return
        prefixes, _ = read_blend("--valid-data-path", self.validation_paths)
        names = distinct_names(map(source_name, prefixes))
        replay = {name for name, path in self.sources.items() if {name, path} & set(self.options.replay)}
        for name, prefix in zip(names, prefixes, strict=True):
            self.write(f"validation.sets.{name}.paths", [prefix], "")
            if role := validation_role(name, prefix, self.sources, replay):
                self.write(f"validation.sets.{name}.role", role, "")
            if tokens:
                self.write(f"validation.sets.{name}.tokens", count_text(tokens), "")
        remark = "each a set of its own, the same sequences at each evaluation"
        if self.has("--valid-data-path"):
            self.note("--valid-data-path", "taken", f"validation.sets: {', '.join(names)} ({remark})")
        if self.has("--eval-iters"):
            self.note("--eval-iters", "taken", f"tokens of each set: {short(count_text(tokens))}")

    # --- everything else

    def _by_table(self, flag: str) -> None:
        each = self.given[flag]
        argument = each.argument
        assert argument is not None, "unknown ones are apart"
        value = self.value(flag)
        if argument.treatment in ("key", "steps"):
            value = f"{value} steps" if argument.treatment == "steps" else value
            self.take(flag, argument.words, value)
        elif argument.treatment == "equal":
            self.note(flag, "equal", argument.words)
        elif argument.treatment == "refused" and " ".join(each.values) == argument.default and each.values:
            self.note(flag, "equal", "Megatron-LM's default")
        elif argument.treatment == "refused":
            self.note(flag, "refused", argument.words)
        else:
            self.note(flag, "equal", f"nothing else of the list makes use of it ({argument.words})")


_DATA = ("--data-path", "--train-data-path", "--data-args-path", "--per-split-data-args-path")
_MOMENT_WARMUP = 100
"""Steps: with beta2 = 0.95 the second moments have forgotten their beginning, with 0.999 a tenth of them is there."""
_SPLIT_BY_SHARES = ("--data-path", "--data-args-path")
_SPLIT = "969, 30, 1"
"""Megatron-LM's own, for --data-path."""


def _read_text(flag: str, path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise BadInput(Fault(f"{flag} {path}", "cannot be read here.", "Give the blend as --data-path.")) from error
