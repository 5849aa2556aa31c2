"""One model made of several of one shape: means of weights, sums of task vectors, TIES.

- linear: the weighted mean (arXiv:2203.05482). Of checkpoints of one run it stands for a decay that was not trained
  (arXiv:2306.03241); of a run's last checkpoint and its base it is a way back towards the base (arXiv:2109.01903).
- task_arithmetic: the base and a sum of scaled differences from it (arXiv:2212.04089).
- ties: the differences are trimmed, a sign is elected for each weight, and those of that sign are averaged
  (arXiv:2306.01708).

A parameter of each model stands in memory at a time, in fp32 and as Hugging Face divides it: queries, keys and values
are trimmed apart. The paper trims a whole model at once; by tensors is how mergekit and PEFT trim.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from megatron_cpt.checkpoint.convert import differing_fields, dtypes_of, exact_precision, write_checkpoint
from megatron_cpt.checkpoint.dcp import StoredTensors, match_places, stored_places
from megatron_cpt.checkpoint.hf_dtypes import TensorDtypes, parent_dtypes, word_of
from megatron_cpt.checkpoint.hf_folder import open_hf_tensors, refuse_altered
from megatron_cpt.checkpoint.hf_others import hashed_others, refuse_unlike
from megatron_cpt.checkpoint.hf_weights import check_tensors, fill, hf_sizes, join_shards
from megatron_cpt.checkpoint.load import has_per_layer_keys, read_table, verify_and_vet
from megatron_cpt.config.errors import BadInput, Fault, NumericsFault, refuse
from megatron_cpt.families.family import ModelShape
from megatron_cpt.families.shape import name_table, read_shape
from megatron_cpt.families.weights import parameters_of
from megatron_cpt.runs.checkpoint_state import hf_folder_of, is_complete
from megatron_cpt.runs.folder import refuse_existing

Method = Literal["linear", "task_arithmetic", "ties"]

TIES_DENSITY = 0.2
"""What the paper keeps where there is no text to choose by."""

_LARGEST = torch.finfo(torch.float32).max


@dataclass(frozen=True, kw_only=True)
class Averaging:
    """How models become one."""

    weights: Sequence[float]
    """One for each model. They are scaled to 1, but for task_arithmetic, which multiplies differences by them."""
    method: Method = "linear"
    """By mergekit's names."""
    base: Path | None = None
    """The model that differences are from; None for linear, which has none."""
    density: float | None = None
    """Part of each tensor's differences that ties keeps, more than 0 to 1; None: TIES_DENSITY."""
    scale: float | None = None
    """Factor of the whole difference from the base; None: 1."""

    def faults(self, models: int) -> Iterator[Fault]:
        """What is wrong with it for so many models."""
        shown = f"weights {list(self.weights)}"
        if self.method == "task_arithmetic":
            if len(self.weights) != models or not all(map(_fits, self.weights)):
                rule = f"is no list of {models} numbers of float32, up to {_LARGEST:.3g}."
                yield Fault(shown, rule, "Give one for each source.")
        elif len(self.weights) != models or min(self.weights) < 0 or not 0 < sum(self.weights) < math.inf:
            rule = f"is no list of {models} shares, finite, not negative and not all 0."
            yield Fault(shown, rule, "Give one for each source.")
        if self.method == "linear":
            for name, value in (("base", self.base), ("scale", self.scale)):
                if value is not None:
                    rule = "a linear mean has none: it is of the sources alone."
                    remedy = "Name the base among the sources, with a weight of its own."
                    yield Fault(f"{name} {value}", rule, remedy)
        elif self.base is None:
            rule = "adds differences from a base, and none is named."
            yield Fault(f"method {self.method}", rule, "Name the model that the sources were trained from: --base.")
        if self.density is not None and self.method != "ties":
            yield Fault(f"density {self.density}", f"{self.method} trims nothing.", "Use it with --method ties.")
        if self.density is not None and not 0 < self.density <= 1:
            yield Fault(f"density {self.density}", "must be more than 0, and 1 at most.", "Give another part to keep.")
        if self.scale is not None and not _fits(self.scale):
            rule = f"must be a number of float32, up to {_LARGEST:.3g}."
            yield Fault(f"scale {self.scale}", rule, "Give another factor.")

    def combine(self, models: Sequence[Tensor], base: Tensor | None = None) -> Tensor:
        """One tensor of the models, and of the base where there is one, made one. All are float32 of one size."""
        scale = 1.0 if self.scale is None else self.scale
        if self.method == "linear":
            return linear(models, self.weights)
        assert base is not None, "differences have a base"
        if self.method == "task_arithmetic":
            return base.add(weighted_sum([model - base for model in models], self.weights), alpha=scale)
        density = TIES_DENSITY if self.density is None else self.density
        # Of any size, as those of a mean are: divided by a power of two, which rounds none, so that float32 has them.
        _, exponent = math.frexp(max(self.weights))
        shares = [math.ldexp(weight, -exponent) for weight in self.weights]
        return base.add(ties([trim(model - base, density) for model in models], shares), alpha=scale)

    def described(self, sources: Sequence[Path]) -> dict[str, Any]:
        """What was made of which models, for the model card."""
        given = {"density": TIES_DENSITY if self.method == "ties" and self.density is None else self.density}
        return {
            "method": self.method,
            "base": None if self.base is None else str(self.base),
            "sources": [str(source) for source in sources],
            "weights": list(self.weights),
            "scale": 1.0 if self.scale is None and self.method != "linear" else self.scale,
        } | given


def _fits(number: float) -> bool:
    """Whether float32 has it, rounded."""
    return abs(number) <= _LARGEST


def linear(models: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    """The weighted mean; the weights need not add up to 1."""
    total = sum(weights)
    return weighted_sum(models, [weight / total for weight in weights])


def weighted_sum(tensors: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    """The tensors times their weights, together."""
    found = torch.zeros_like(tensors[0])
    for tensor, weight in zip(tensors, weights, strict=True):
        found.add_(tensor, alpha=weight)
    return found


def trim(difference: Tensor, density: float) -> Tensor:
    """The numbers of largest magnitude, int(density * all) of them but at least one; the others become 0.

    All that are as large as the smallest of them stay too: differences of bfloat16 weights have few values, and no
    place in a tensor is better than another.
    """
    kept = max(1, int(density * difference.numel()))
    magnitudes = difference.abs()
    ordered = magnitudes.flatten().numpy().copy()
    ordered.partition(ordered.size - kept)
    return difference.where(magnitudes >= float(ordered[-kept]), 0.0)


def ties(differences: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    """The mean, at each place, of the differences whose sign is that of their weighted sum; 0 where it has no sign.

    Differences of 0, trimmed ones, do not count in the mean. Signs are elected in fp64, so that the order of the
    models does not decide them.
    """
    elected = torch.zeros_like(differences[0], dtype=torch.float64)
    for difference, weight in zip(differences, weights, strict=True):
        elected.add_(difference, alpha=weight)
    sign = elected.sign_().float()
    total, counted = torch.zeros_like(sign), torch.zeros_like(sign)
    for difference, weight in zip(differences, weights, strict=True):
        agrees = difference * sign > 0
        total.add_(difference.where(agrees, 0.0), alpha=weight)
        counted.add_(agrees, alpha=weight)
    return total.div_(counted.where(counted > 0, 1.0))


def average(sources: Sequence[Path], how: Averaging, output: Path) -> str:
    """Writes the model that several make as a checkpoint of weights alone, to be evaluated, exported or started from.

    One process calls it. Two of the models' parameters are computed at a time, in fp32.

    Args:
        sources: checkpoints or Hugging Face folders of models of one shape.
    Returns:
        The dtype that it is stored in: bfloat16 where all tensors of the first source are in it, else float32.
    Raises:
        BadInput: the models are not of one shape, the settings fit no such models, or there is something at `output`.
        IntegrityFault: a source is not what was written.
        NumericsFault: a weight of the model would not be finite. Nothing is left at `output`.
    """
    refuse_existing(output)
    refuse([*how.faults(len(sources))])
    everyone = [*sources, *([] if how.base is None else [how.base])]
    shape = _shape_of_all(everyone)
    first = hf_folder_of(sources[0])
    stored = parent_dtypes(first)
    dtype = exact_precision(shape, {name: word_of(stored.of(name, torch.float32)) for name in hf_sizes(shape)})
    dtypes = dtypes_of(shape, dtype)
    table, (places, values) = name_table(shape), stored_places(shape)
    others = hashed_others(first)
    for model in map(hf_folder_of, everyone[1:]):
        refuse_unlike(hashed_others(model), others, sources[0])
    with ExitStack() as opened:
        readers = [opened.enter_context(_opened(source, shape)) for source in everyone]

        def read(name: str) -> Tensor:
            found = [reader(name) for reader in readers]
            models, bases = found[: len(sources)], found[len(sources) :]
            combined = {
                tensor: how.combine([model[tensor] for model in models], *(base[tensor] for base in bases))
                for tensor in models[0]
            }
            parameter = torch.empty(places[name].size, dtype=dtypes[name])
            fill(parameter, *table[name], shape, _Computed(combined), rank=0, ranks=1)
            if not parameter.isfinite().all():
                rule = (
                    f"{name}: a weight of the result is not finite in {word_of(dtypes[name])}, and nothing was written"
                )
                raise NumericsFault(f"{rule}: give smaller weights or scale, or sources that are finite")
            return parameter

        write_checkpoint(output, first, places, values, dtypes, read, how.described(sources))
    return word_of(dtype)


def _shape_of_all(models: Sequence[Path]) -> ModelShape:
    """The shape that all have. Raises BadInput with every model that has another."""
    shapes = [read_shape(hf_folder_of(model)) for model in models]
    refuse(
        [
            Fault(
                str(model),
                f"is of another model than {models[0]}: {differing_fields(shape, shapes[0])}.",
                "Average models of one shape.",
            )
            for model, shape in zip(models, shapes, strict=True)
            if shape != shapes[0]
        ]
    )
    return shapes[0]


class _Computed:
    """Tensors by name, to be read as those of a folder are."""

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        self._tensors = tensors

    def read(self, name: str, axis: int, start: int, length: int) -> Tensor:
        return self._tensors[name].narrow(axis, start, length)


@contextmanager
def _opened(source: Path, shape: ModelShape) -> Iterator[Callable[[str], dict[str, Tensor]]]:
    """What gives the Hugging Face tensors of a parameter in float32, by the parameter's name.

    Raises:
        BadInput: its tensors are not those of the shape.
        IntegrityFault: it is not what was written.
    """
    table = name_table(shape)
    if is_complete(source):
        verify_and_vet(source)
        shards = source / "shards"
        stored = StoredTensors(shards)
        places, _ = stored_places(shape, has_per_layer_keys(read_table(shards)))
        found = match_places(places, stored.sizes, shape, shards)
        yield lambda name: join_shards([stored.read(found[name])], *table[name], shape, TensorDtypes("float32"))
        return
    refuse_altered(source)
    with open_hf_tensors(source) as tensors:
        check_tensors(tensors, shape)

        def read(name: str) -> dict[str, Tensor]:
            rule, place = table[name]
            names = [place.name(tensor.name) for tensor in parameters_of(rule)]
            return {one: tensors.read(one, 0, 0, tensors.size(one)[0]).float() for one in names}

        yield read


def check_pair(models: Sequence[Path]) -> ModelShape:
    """The shape of the two models that a curve is drawn between. Raises BadInput where they are not two of one."""
    if len(models) != 2:
        rule = f"is drawn from a base to a model, and {len(models)} are named."
        raise BadInput(Fault("--curve", rule, "Name the model, then its base."))
    return _shape_of_all(models)
