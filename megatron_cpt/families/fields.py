"""config.json of a Hugging Face folder, read field by field so that none is overlooked."""

from collections.abc import Container, Iterable
from typing import Any, Literal

from megatron_cpt.config.errors import Fault

# Names, habits of training and generation, and what other fields imply: no logit depends on them.
# fmt: off
HARMLESS = frozenset({
    "_name_or_path", "architectures", "model_type", "transformers_version", "auto_map", "tokenizer_class",
    "dtype", "torch_dtype", "use_bfloat16", "torchscript", "tf_legacy_loss", "pretraining_tp",
    "bos_token_id", "eos_token_id", "pad_token_id", "unk_token_id", "sep_token_id", "decoder_start_token_id",
    "initializer_range", "attention_dropout", "hidden_dropout", "resid_pdrop", "embd_pdrop",
    "use_cache", "return_dict", "output_attentions", "output_hidden_states", "output_scores",
    "return_dict_in_generate", "chunk_size_feed_forward", "attn_implementation", "_attn_implementation",
    "finetuning_task", "id2label", "label2id", "problem_type", "task_specific_params", "prefix",
    "max_length", "min_length", "do_sample", "early_stopping", "num_beams", "num_beam_groups",
    "num_return_sequences", "diversity_penalty", "temperature", "top_k", "top_p", "typical_p",
    "repetition_penalty", "length_penalty", "no_repeat_ngram_size", "encoder_no_repeat_ngram_size",
    "exponential_decay_length_penalty", "remove_invalid_values",
    "gradient_checkpointing", "neftune_noise_alpha", "_attn_implementation_autoset",
})
# fmt: on
# Harmless as long as they are off.
_HARMLESS_WHEN_OFF = frozenset({"is_decoder", "is_encoder_decoder", "add_cross_attention", "tie_encoder_decoder"})


class ConfigFields:
    """The fields of one config.json, each taken once, and the faults found on the way."""

    def __init__(self, path: str, fields: dict[str, Any], read: Container[str] | None = None) -> None:
        """Takes the fields.

        Args:
            path: their file, for messages.
            read: names that transformers reads (transformers_fields.py); None: it may read any.
        """
        self.path = path
        self.faults: list[Fault] = []
        self.unread: list[str] = []
        """Fields that are set, that the family would not take and that transformers does not read."""
        self._left = dict(fields)
        self._read = read

    def fault(self, name: str, value: Any, rule: str, remedy: str) -> None:
        """Notes that a field cannot be honoured."""
        self.faults.append(Fault(f"{self.path}: {name} = {value!r}", rule, remedy))

    def take(self, name: str, default: Any = None) -> Any:
        """The field's value; the default where it is missing or null."""
        value = self._left.pop(name, None)
        return default if value is None else value

    def assume(self, name: str, value: Any) -> None:
        """Gives a field that is missing or null a value."""
        if not self.has(name):
            self._left[name] = value

    def has(self, name: str) -> bool:
        """Whether the field is there, not null, and was not taken yet."""
        return self._left.get(name) is not None

    def integer(self, name: str, default: int | None = None) -> int:
        """A whole number of at least 1. A fault is noted, and 1 returned, for anything else."""
        value = self.take(name, default)
        if isinstance(value, int) and not isinstance(value, bool) and value >= 1:
            return value
        self.fault(name, value, "must be a whole number of at least 1.", "Mend config.json.")
        return 1

    def optional_integer(self, name: str, default: int | None) -> int | None:
        """A whole number of at least 1, or None where the field is null. Missing: the default."""
        if name not in self._left:
            return default
        if self._left[name] is None:
            return self.take(name)
        return self.integer(name)

    def positive(self, name: str, default: float) -> float:
        """A number above 0. A fault is noted, and the default returned, for anything else."""
        value = self.take(name, default)
        if isinstance(value, (int, float)) and not isinstance(value, bool) and 0 < value < float("inf"):
            return float(value)
        self.fault(name, value, "must be a number above 0.", "Mend config.json.")
        return default

    def optional_positive(self, name: str, default: float | None) -> float | None:
        """A number above 0, or None where the field is null. Missing: the default."""
        if name not in self._left:
            return default
        if self._left[name] is None:
            return self.take(name)
        return self.positive(name, default or 1.0)

    def not_negative(self, name: str, default: float) -> float:
        """A number of at least 0. A fault is noted, and the default returned, for anything else."""
        value = self.take(name, default)
        if isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value < float("inf"):
            return float(value)
        self.fault(name, value, "must be a number of at least 0.", "Mend config.json.")
        return default

    def boolean(self, name: str, default: bool) -> bool:
        """true or false; the default where nobody reads the field. A fault is noted for anything else."""
        value = self.take(name, default)
        if value != default and self._note_unread(name):
            return default
        if isinstance(value, bool):
            return value
        self.fault(name, value, "must be true or false.", "Mend config.json.")
        return default

    def positives(self, name: str) -> tuple[float, ...]:
        """A list of numbers above 0. A fault is noted, and an empty one returned, for anything else."""
        value = self.take(name)
        numbers = value if isinstance(value, list) else []
        if numbers and all(type(number) in (int, float) and 0 < number < float("inf") for number in numbers):
            return tuple(map(float, numbers))
        self.fault(name, value, "must be a list of numbers above 0.", "Mend config.json.")
        return ()

    def require(self, name: str, allowed: Iterable[Any], default: Any) -> None:
        """Notes a fault unless the field (missing: the default) has one of the values supported or nobody reads it."""
        value, allowed = self.take(name, default), tuple(allowed)
        if value not in allowed and not self._note_unread(name):
            choices = " or ".join(map(repr, allowed))
            self.fault(name, value, f"only {choices} is supported.", "Use a model that has it so.")

    def refuse_left(self, family: str) -> None:
        """Notes a fault for every field that was not taken, is not empty, is read and is not known to be harmless."""
        remedy = "If it changes nothing, take it out of config.json; else this model is not supported."
        if self._left.get("auto_map"):
            remedy = (
                "If only code that auto_map names reads it, and the model computes the same without, take both out."
            )
        for name, value in self._left.items():
            harmless = name in HARMLESS or (name in _HARMLESS_WHEN_OFF and value is False)
            if not harmless and value not in (None, {}, []) and not self._note_unread(name):
                self.fault(
                    name,
                    value,
                    f"the family {family!r} does not know this field, which may change the mathematics.",
                    remedy,
                )

    def _note_unread(self, name: str) -> bool:
        if self._read is None or name in self._read:
            return False
        self.unread.append(name)
        return True


def fp8_block(quantization: Any) -> tuple[int, int] | None:
    """Rows and columns of the blocks of weights in fp8 that have a scale each; None where weights are not so.

    Args:
        quantization: `quantization_config`.
    """
    if not isinstance(quantization, dict) or quantization.get("quant_method") != "fp8":
        return None
    block = quantization.get("weight_block_size")
    if quantization.get("fmt", "e4m3") != "e4m3" or not isinstance(block, list) or len(block) != 2:
        return None
    return (block[0], block[1]) if all(type(size) is int and size > 0 for size in block) else None


def is_mxfp4(quantization: Any) -> bool:
    """Whether weights are in MXFP4, numbers of four bits with a scale for each 32.

    Args:
        quantization: `quantization_config`.
    """
    return isinstance(quantization, dict) and quantization.get("quant_method") == "mxfp4"


Activation = Literal["silu", "gelu", "gelu_tanh", "quick_gelu", "relu2", "xielu"]
"""`gelu` is exact, `gelu_tanh` its approximation by tanh, `quick_gelu` x sigmoid(1.702 x) (arXiv:1606.08415); `relu2`
is ReLU squared; `xielu` has two parameters of its own in each layer (arXiv:2411.13010)."""
_ACTIVATIONS: dict[str, Activation] = {
    "silu": "silu",
    "swish": "silu",
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "relu2": "relu2",
}


def read_activation(fields: ConfigFields, default: str) -> Activation:
    """`hidden_act` by transformers' names, some of which are one function."""
    name = fields.take("hidden_act", default)
    if name not in list(_ACTIVATIONS):  # a list: JSON may hold what no dictionary can be asked for
        known = " or ".join(map(repr, _ACTIVATIONS))
        fields.fault("hidden_act", name, f"only {known} is supported.", "Use a model that has it so.")
    return _ACTIVATIONS.get(str(name), "silu")


KINDS = ("full_attention", "sliding_attention")


def read_layer_types(fields: ConfigFields, layers: int, known: tuple[str, str] = KINDS) -> frozenset[int] | None:
    """The layers that `layer_types` marks as of the second kind, counted from 0; None where it is not written.

    Args:
        known: the two kinds.
    """
    kinds = fields.take("layer_types")
    if kinds is None:
        return None
    if not (isinstance(kinds, list) and len(kinds) == layers and all(kind in known for kind in kinds)):
        rule = f"must name one of {' and '.join(known)} for each of {layers} layers."
        fields.fault("layer_types", kinds, rule, "Mend config.json.")
        return frozenset()
    return frozenset(layer for layer, kind in enumerate(kinds) if kind == known[1])


def every_layer(window: int | None, layers: int) -> frozenset[int]:
    """All layers where there is a window, else none."""
    return frozenset(range(layers)) if window else frozenset()
