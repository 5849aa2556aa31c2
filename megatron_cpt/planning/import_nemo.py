"""From a configuration of Megatron-Bridge or NeMo to a run.yaml, by way of Megatron-LM's arguments.

Most keys of both are arguments of Megatron-LM under its names, in sections. Each becomes the argument that it is, and
import_arguments.py makes the run of them. A key that the file does not have has Megatron-LM's default, not that of a
recipe; dropout alone is 0, as in their models.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from megatron_cpt.config.errors import Fault, refuse
from megatron_cpt.config.units import LARGEST_COUNT, parse_number
from megatron_cpt.planning.config_file import ConfigFile
from megatron_cpt.planning.config_keys import ConfigTranslation, key_of
from megatron_cpt.planning.import_arguments import import_arguments
from megatron_cpt.planning.megatron_lm_arguments import Argument, Given, by_flag, table, typed
from megatron_cpt.planning.outcomes import Imported, ImportOptions, imported

_STYLES = {
    "CosineAnnealing": "cosine",
    "CosineAnnealingScheduler": "cosine",
    "WarmupHoldPolicy": "constant",
    "WarmupPolicy": "constant",
    "WarmupHoldPolicyScheduler": "constant",
    "WarmupPolicyScheduler": "constant",
}
"""NeMo's schedules that Megatron-LM has too."""
_DTYPES = {"torch.float32": "fp32", "torch.bfloat16": "bf16", "torch.float16": "fp16"}


@dataclass(frozen=True)
class _Named:
    """An argument that a key of a configuration is."""

    argument: Argument
    negated: bool
    """Whether the key is true where the switch is not given."""


def import_nemo(config: ConfigFile, options: ImportOptions, later: Sequence[Given] = ()) -> tuple[Imported, int | None]:
    """Translates a configuration. Also returns the ranks that it is for, where it says so.

    Args:
        later: arguments of Megatron-LM that hold over the file.
    Raises:
        BadInput: no run could be made of it.
    """
    translation = _ArgumentsOfConfig(config, options)
    translation.collect(later)
    ranks = options.ranks or translation.ranks()
    model = options.model or translation.model_folder()
    settled = ImportOptions(model, options.folder, options.replay, ranks, options.assumed)
    found = import_arguments(list(translation.given.values()), settled, compare_defaults=False)
    told = {outcome.text for outcome in found.outcomes}
    others = [outcome for outcome in translation.outcomes if outcome.text not in told]
    return imported([*found.entries, *translation.entries], [*found.outcomes, *others]), ranks


class _ArgumentsOfConfig(ConfigTranslation):
    """A configuration on its way to an argument list."""

    def __init__(self, config: ConfigFile, options: ImportOptions) -> None:
        super().__init__(config, options)
        self.given: dict[str, Given] = {}

    def collect(self, later: Sequence[Given]) -> None:
        """Every argument, and what becomes of all other keys."""
        for each in later:
            self.given[each.argument.flag if each.argument else each.flag] = each
        self._rules()
        for name, value in self.values.items():
            if name.rpartition(".")[2].startswith("_") or name in self._noted:
                continue
            named = self._named(name)
            if named is not None and value is None:
                self.note(name, "equal", "null: nothing is set")
            elif named is not None and not isinstance(value, dict):
                self._argument(name, value, named)
        refuse(self.faults)
        for flag in ("--hidden-dropout", "--attention-dropout"):
            if flag not in self.given:
                self.given[flag] = Given(flag, ("0.0",), by_flag()[flag], f"{flag} 0.0 (default of its models)")
        self.rest()

    def _named(self, name: str) -> _Named | None:
        """The argument that a key is: by the table, or by its name where the table has no row of its own."""
        row = key_of(self.program, name)
        if row is not None and row.treatment == "same":
            return _Named(by_flag()[row.words.removeprefix("not ")], row.words.startswith("not "))
        if (row is not None and row.name == name) or "." not in name:
            return None
        argument = _by_dest().get(name.rpartition(".")[2])
        return None if argument is None else _Named(argument, argument.default == "true" and argument.values == "-")

    def _argument(self, name: str, value: Any, named: _Named) -> None:
        argument = named.argument
        if argument.values == "-":
            if bool(value) is named.negated:
                self.note(name, "equal", f"as without {argument.flag}")
                return
            words: tuple[str, ...] = ()
        else:
            words = tuple(map(_word, value if isinstance(value, list) else [value]))
        if not words and argument.values != "-":
            self.note(name, "equal", "nothing is set")
            return
        if not _fits(argument, words):
            self.faults.append(Fault(self.text(name), f"is not what {argument.flag} of Megatron-LM takes.", "Mend it."))
            return
        self.give(argument.flag, words, name)

    def give(self, flag: str, words: Sequence[str], name: str) -> None:
        """An argument gets values from a key. Of keys that are the same argument the first holds."""
        argument = by_flag()[flag]
        before = self.given.get(argument.flag)
        if before is None:
            self._noted.add(self.name(name))
            self.given[argument.flag] = Given(flag, tuple(words), argument, self.text(name))
        elif before.values == tuple(words):
            self.note(name, "equal", f"{before.text} says so too")
        else:
            self.note(name, "refused", f"{before.text} holds over it. Take one of them out")

    # --- what several keys say, or say in other words

    def _rules(self) -> None:
        self._blend()
        self._precision()
        self._model_words()
        self._optimizer()
        self._evaluations()
        for name in ("trainer.devices", "trainer.num_nodes"):
            self.equal(name, words="ranks of the run: `plan --nproc`")
        if self.switch("exp_manager.create_wandb_logger") and self.has("exp_manager.wandb_logger_kwargs.project"):
            name = "exp_manager.wandb_logger_kwargs.project"
            self.give("--wandb-project", [str(self.value(name))], name)
        for name in ("trainer.max_time", "exp_manager.max_time_per_run"):
            if self.has(name) and (minutes := _minutes(self.value(name))):
                self.give("--exit-duration-in-mins", [str(minutes)], name)

    def ranks(self) -> int | None:
        """Devices of all nodes; None where they are not numbers."""
        devices, nodes = self.values.get("trainer.devices"), self.values.get("trainer.num_nodes") or 1
        return devices * nodes if isinstance(devices, int) and isinstance(nodes, int) and devices > 0 else None

    def model_folder(self) -> str | None:
        """A Hugging Face folder that the configuration names and that is there."""
        names = ("model.hf_model_id", "checkpoint.hf_source_path", "model.tokenizer.type", "model.tokenizer.model")
        folders = [str(self.values[name]) for name in names if self.values.get(name)]
        return next((folder for folder in folders if Path(folder, "config.json").is_file()), None)

    def _blend(self) -> None:
        if self.has("dataset.blend"):
            self.give("--data-path", self._pair("dataset.blend", self.value("dataset.blend")), "dataset.blend")
        for name in ("dataset.data_path", "model.data.data_prefix", "data.paths"):
            if self.has(name):
                self.give("--data-path", self._prefixes(name), name)
        split = self.value("dataset.blend_per_split")
        if isinstance(split, list) and split and split[0]:
            self.give("--train-data-path", self._pair("dataset.blend_per_split", split[0]), "dataset.blend_per_split")
            if len(split) > 1 and split[1]:
                flag, words = "--valid-data-path", tuple(self._pair("dataset.blend_per_split", split[1]))
                self.given[flag] = Given(flag, words, by_flag()[flag], "dataset.blend_per_split[1]")
        for part, flag in (("train", "--train-data-path"), ("validation", "--valid-data-path")):
            for place in ("model.data.data_prefix", "data.paths"):
                if self.has(f"{place}.{part}"):
                    self.give(flag, self._prefixes(f"{place}.{part}"), f"{place}.{part}")

    def _prefixes(self, name: str) -> list[str]:
        """The words of `--data-path` from a text, a list of them, or a pair of lists."""
        blend = self.value(name)
        if isinstance(blend, list) and blend and isinstance(blend[0], list):
            return self._pair(name, blend)
        return blend.split() if isinstance(blend, str) else list(map(_word, blend)) if isinstance(blend, list) else []

    def _pair(self, name: str, blend: Any) -> list[str]:
        """The words of `--data-path` from Bridge's pair of prefixes and weights. A fault is noted for another value."""
        if isinstance(blend, str):
            return blend.split()
        pair: list[Any] = blend if isinstance(blend, list) and len(blend) in (1, 2) else [None]
        prefixes, weights = pair if len(pair) == 2 else (*pair, None)
        rule = None
        if not isinstance(prefixes, list) or not prefixes or not all(isinstance(one, str) for one in prefixes):
            rule = "is not a list of prefixes and one of their weights."
        elif weights is not None and not _are_numbers(weights, len(prefixes)):
            rule = f"does not have one number for each of its {len(prefixes)} prefixes."
        if rule is not None:
            self.faults.append(Fault(self.text(name), rule, "Write [[A, B], [0.7, 0.3]], or null in place of weights."))
            return []
        pairs = zip(prefixes, strict=True) if weights is None else zip(weights, prefixes, strict=True)
        return [_word(word) for pair in pairs for word in pair]

    def _precision(self) -> None:
        for name in ("mixed_precision", "trainer.precision", "trainer.plugins.precision"):
            word = str(self.value(name) or "")
            if "bf16" in word:
                self.give("--bf16", (), name)
            elif word.startswith(("16", "fp16")):
                self.give("--fp16", (), name)
            for other, flag in (("fp8", "--fp8-format"), ("fp4", "--fp4-format")):
                if other in word:
                    self.given[flag] = Given(flag, (word,), by_flag()[flag], f"{name}: {word}, of which {other}")

    def _model_words(self) -> None:
        """NeMo 1's words for norms and activations."""
        norm = str(self.value("model.normalization") or "").lower()
        kinds = {"rmsnorm": "RMSNorm", "layernorm": "LayerNorm", "layernorm1p": "LayerNorm"}
        if norm in kinds and self.program.name == "nemo":
            self.give("--normalization", [kinds[norm]], "model.normalization")
        activation = str(self.value("model.activation") or "")
        if activation in ("swiglu", "fast-swiglu"):
            self.give("--swiglu", (), "model.activation")
        elif activation == "squared-relu":
            self.give("--squared-relu", (), "model.activation")

    def _optimizer(self) -> None:
        kind = self.value("model.optim.name")
        if kind is not None and "adam" not in str(kind):
            self.give("--optimizer", [str(kind)], "model.optim.name")
        elif kind is not None and "distributed" in str(kind):
            self.give("--use-distributed-optimizer", (), "model.optim.name")
        self.equal("model.optim.name", words="AdamW with a state in fp32")
        betas = self.numbers("model.optim.betas")
        if len(betas) == 2:
            self.give("--adam-beta1", [_word(betas[0])], "model.optim.betas")
            self.given["--adam-beta2"] = Given(
                "--adam-beta2", (_word(betas[1]),), by_flag()["--adam-beta2"], f"model.optim.betas[1]: {betas[1]}"
            )
        for section in ("model.optim.sched", "optim.lr_scheduler"):
            self._schedule(section)

    def _schedule(self, section: str) -> None:
        """NeMo's decay ends `constant_steps` before the run, as Megatron-LM's does after `--lr-decay-iters`."""
        for key in (f"{section}.name", f"{section}._target_"):
            if self.has(key):
                word = str(self.value(key)).rpartition(".")[2]
                self.give("--lr-decay-style", [_STYLES.get(word, word)], key)
        steps = self.whole(f"{section}.max_steps") or self.whole("trainer.max_steps")
        constant = self.whole(f"{section}.constant_steps")
        if steps and constant:
            self.give("--lr-decay-iters", [str(steps - constant)], f"{section}.constant_steps")
        elif steps and self.has(f"{section}.max_steps"):
            self.give("--lr-decay-iters", [str(steps)], f"{section}.max_steps")
        self.equal(f"{section}.constant_steps", f"{section}.max_steps", words="the decay ends with the run")

    def _evaluations(self) -> None:
        for name, flag in (
            ("trainer.val_check_interval", "--eval-interval"),
            ("trainer.limit_val_batches", "--eval-iters"),
        ):
            if isinstance(value := self.value(name), int) and not isinstance(value, bool) and value > 0:
                self.give(flag, [str(value)], name)
            elif value is not None:
                words = (
                    "A share of an epoch or of a set is not meant here. Set validation.sets.NAME.tokens, eval_interval"
                )
                self.refuse(name, words)


@cache
def _by_dest() -> Mapping[str, Argument]:
    """Arguments by their attribute of Megatron-LM's `args`; of two with the same the first holds."""
    return {argument.dest: argument for argument in reversed(table())}


def _fits(argument: Argument, words: Sequence[str]) -> bool:
    """Whether an argument takes so many words, and of this type."""
    if argument.values.isdigit() and len(words) != int(argument.values):
        return False
    try:
        values = [typed(argument, word) for word in words]
    except ValueError:
        return False
    return all(isinstance(value, str) or abs(value) <= LARGEST_COUNT for value in values)


def _are_numbers(values: Any, count: int) -> bool:
    """Whether a value is a list of so many numbers."""
    try:
        return isinstance(values, list) and len([parse_number(value) for value in values]) == count
    except (TypeError, ValueError):
        return False


def _word(value: Any) -> str:
    """A value as it is typed; a dtype of torch by Megatron-LM's name."""
    return str(value).lower() if isinstance(value, bool) else _DTYPES.get(str(value), str(value))


def _minutes(text: Any) -> int | None:
    """Minutes of Lightning's `DD:HH:MM:SS`; None for anything else."""
    parts = str(text).split(":")
    if len(parts) != 4 or not all(part.isdecimal() for part in parts):
        return None
    days, hours, minutes, _ = map(int, parts)
    return (days * 24 + hours) * 60 + minutes
