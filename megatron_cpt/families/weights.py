"""Name tables as data: which slices of which Hugging Face tensors make up a rank's part of a parameter.

A rule names one Megatron-Core parameter and the Hugging Face tensors that it holds. `pieces` turns a
rule into plain slices, from which both directions follow: loading copies each piece from the
safetensors into the parameter, exporting copies it back. Megatron-Core's layouts:

- a matrix [out, in] multiplies from the left, as in Hugging Face: nothing is transposed;
- tensor-parallel rank r of R owns the r-th R-th of the rows (column parallel) or columns (row parallel);
- linear_qkv interleaves rows by query group: its query heads, its key head, its value head;
- where a gate weighs what heads give, their gates stand between a group's query heads and its key head, and in Hugging
  Face's tensor of queries behind each head;
- in_proj of a gated delta net holds the rows of queries, keys, values, gates, betas and alphas, each rank its part of
  each; its convolution's those of queries, keys and values;
- linear_fc1 of a gated MLP holds the gate's rows, then up's; each rank its part of both;
- a Hugging Face tensor may hold several of these one after the other (queries, keys, values; gate, up);
- the vocabulary is padded to a multiple of R; the padding is the end of the last ranks;
- each expert is a parameter of its own, whole on the ranks of its expert-parallel part and divided among
  those that share an expert, which need not be those that share the rest of the layer.

Some folders hold one tensor for all experts of a layer. A table names what each expert has of it by itself, and `Stack`
says where in that tensor it is.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Literal, Protocol

Layers = Literal["all", "dense", "sparse", "attention", "delta"]


@dataclass(frozen=True)
class Place:
    """Where in the model a parameter is; both numbers count from 0 over all ranks."""

    layer: int | None = None
    """Its layer; None outside of the layers."""
    expert: int | None = None
    """Its expert; None outside of the experts."""

    def name(self, template: str) -> str:
        """A name with `{layer}` and `{expert}` filled in."""
        return template.format(layer=self.layer, expert=self.expert)


@dataclass(frozen=True)
class Tensor:
    """One Hugging Face tensor."""

    name: str
    """Its name in the safetensors; `{layer}` and `{expert}` stand for global numbers."""
    size: tuple[str, ...]
    """Its dimensions, as fields of ModelShape; none for a number alone."""
    constant: float | None = None
    """Of a number that is no parameter, but stands in folders: what it always is."""


@dataclass(frozen=True)
class Stack:
    """One tensor of a folder that holds tensors of a name table of all experts of a layer: [experts, ...]."""

    name: str
    """Its name in the safetensors; `{layer}` stands for a global number."""
    tensors: tuple[str, ...]
    """The names in the table, with `{expert}`."""
    alternate: bool = False
    """Whether the rows of several tensors alternate, or those of the second follow those of the first."""
    transposed: bool = False
    """Whether it holds each matrix turned: [experts, columns, rows]."""
    hidden_axis: int | None = None
    """Where folders hold the matrices either way: which axis of one that is not turned is `hidden_size` long."""
    is_only_form: bool = False
    """Whether transformers reads no folder that holds the tensors each by itself."""

    def as_stored(self, size: tuple[int, ...], hidden: int) -> "Stack":
        """The same as a folder holds it. Matrices that may be either way are not turned, as in transformers.

        Args:
            size: of the tensor of all experts.
            hidden: `hidden_size` of config.json.
        """
        if self.hidden_axis is None or len(size) != 3:
            return self
        axis = 1 + self.hidden_axis
        return replace(self, transposed=size[axis] != hidden and size[3 - axis] == hidden)


@dataclass(frozen=True)
class StackPlace:
    """Where a tensor of a name table is in the tensor of a folder."""

    stack: str
    """The name of that tensor."""
    expert: int
    """Its first index there."""
    part: int
    """Which of the tensors that share the rows."""
    parts: int
    """How many tensors do."""
    alternate: bool
    """Whether of the rows, every `parts`-th is its own, or a part without gaps."""
    transposed: bool
    """Whether rows are the last axis there."""

    def whole_size(self, size: tuple[int, ...], experts: int) -> tuple[int, ...]:
        """The dimensions of that tensor.

        Args:
            size: of the tensor of the table.
            experts: how many there are.
        """
        rows, *columns = size
        of_expert = (rows * self.parts, *columns)
        return (experts, *(reversed(of_expert) if self.transposed else of_expert))

    def rows(self, of_all: int, start: int = 0, stop: int | None = None) -> slice:
        """Its rows start to stop, by default all, among those of an expert.

        Args:
            of_all: rows of an expert.
        """
        own = of_all // self.parts
        stop = own if stop is None else stop
        if self.alternate:
            return slice(self.part + start * self.parts, stop * self.parts, self.parts)
        return slice(self.part * own + start, self.part * own + stop)


def stack_places(stack: Stack, layer: int, experts: int) -> dict[str, StackPlace]:
    """Where the tensors of a layer are, by their names in the table."""
    name, parts = stack.name.format(layer=layer), len(stack.tensors)
    return {
        tensor.format(layer=layer, expert=expert): StackPlace(
            name, expert, part, parts, stack.alternate, stack.transposed
        )
        for expert in range(experts)
        for part, tensor in enumerate(stack.tensors)
    }


@dataclass(frozen=True)
class Rule:
    """One Megatron-Core parameter; the subclasses say how tensor parallelism divides it."""

    names: tuple[str, ...]
    """Its names in the local spec and in Transformer Engine's."""
    tensors: tuple[Tensor, ...]
    """The Hugging Face tensors that it holds."""
    exported: bool = True
    """False for the last stage's copy of a tied embedding, which the first stage exports."""
    layers: Layers = "all"
    """Which layers have it: all, those with a dense MLP, with experts, with attention, or with a gated delta net."""
    buffer: bool = False
    """Whether it is no parameter but a buffer, which no gradient changes, and in fp32 whatever the precision."""

    @property
    def of_layer(self) -> bool:
        """Whether each layer has one of its own."""
        return "{layer}" in self.names[0]

    @property
    def of_expert(self) -> bool:
        """Whether each expert has one of its own."""
        return "{expert}" in self.names[0]


class Replicated(Rule):
    """The same on every tensor-parallel rank."""


class ColumnParallel(Rule):
    """Rows are divided."""


class RowParallel(Rule):
    """Columns are divided."""


class VocabularyParallel(Rule):
    """Rows, one for each token, are divided after padding."""


class QueryKeyValue(Rule):
    """Query, key and value rows, interleaved by query group; groups are divided."""


class JoinedQueryKeyValue(Rule):
    """The same from one tensor that holds all query rows, then all key rows, then all value rows."""


class GatedQueryKeyValue(Rule):
    """The same from a tensor whose rows are a query head, then the gate of what it gives, then the next head."""


class DeltaInputs(Rule):
    """Rows of queries, keys, values, gates, betas and alphas of a gated delta net; each is divided.

    From four tensors: queries, keys and values together, gates, betas, alphas.
    """


class GroupedDeltaInputs(Rule):
    """The same from two tensors: for each key head its query, its key, its heads' values and gates; betas and alphas.

    In the second, each key head has the betas of its value heads, then their alphas.
    """


class DeltaConvolution(Rule):
    """One tensor that holds the rows of queries, keys and values; each is divided."""


class GatedUp(Rule):
    """The gate's rows, then up's; each is divided."""


class JoinedGatedUp(Rule):
    """The same from one tensor that holds the gate's rows, then up's."""


def linear_rules(
    kind: type[Rule],
    ours: str,
    theirs: Sequence[tuple[str, str]],
    columns: str,
    biased: bool = False,
    layers: Layers = "all",
) -> tuple[Rule, ...]:
    """The weight of a projection of each layer, and its bias if it has one.

    Args:
        kind: how ranks divide the weight. The bias of a row-parallel one is whole on every rank: it is added once,
            after the ranks' products are summed.
        ours: its name in a layer of Megatron-Core.
        theirs: Hugging Face's names of its matrices, each with the field of ModelShape that is its rows.
        columns: the field that is their columns.
    """
    name = f"decoder.layers.{{layer}}.{ours}"
    weights = tuple(Tensor(f"{matrix}.weight", (rows, columns)) for matrix, rows in theirs)
    biases = tuple(Tensor(f"{matrix}.bias", (rows,)) for matrix, rows in theirs)
    weight = kind((f"{name}.weight",), weights, layers=layers)
    bias = (Replicated if kind is RowParallel else kind)((f"{name}.bias",), biases, layers=layers)
    return (weight, bias) if biased else (weight,)


def norm_rules(
    theirs: str, *ours: str, biased: bool = False, size: str = "hidden", layers: Layers = "all"
) -> tuple[Rule, ...]:
    """The weight of a norm, and its bias if it has one.

    Args:
        theirs: Hugging Face's name.
        ours: Megatron-Core's names, whole but for `weight` and `bias`: Transformer Engine keeps a norm's weights in
            the linear layer that follows.
        size: the field of ModelShape that is its width.
    """
    return tuple(
        Replicated(tuple(f"{name}{part}" for name in ours), (Tensor(f"{theirs}.{part}", (size,)),), layers=layers)
        for part in (("weight", "bias") if biased else ("weight",))
    )


class Sizes(Protocol):
    """What this file needs of a ModelShape."""

    @property
    def layers(self) -> int: ...
    @property
    def sparse_layers(self) -> tuple[int, ...]: ...
    @property
    def experts(self) -> int: ...
    @property
    def heads(self) -> int: ...
    @property
    def query_groups(self) -> int: ...
    @property
    def head_dim(self) -> int: ...
    @property
    def delta_layers(self) -> frozenset[int]: ...
    @property
    def delta_key_heads(self) -> int: ...
    @property
    def delta_value_heads(self) -> int: ...
    @property
    def delta_key_dim(self) -> int: ...
    @property
    def delta_value_dim(self) -> int: ...


@dataclass(frozen=True)
class Piece:
    """`length` rows (axis 0) or columns (axis 1) that a parameter and a Hugging Face tensor share."""

    tensor: int
    """Which of the rule's tensors."""
    axis: int
    """0: rows, 1: columns; the other axis is whole on both sides."""
    local: int
    """Where it begins in the rank's parameter."""
    start: int
    """Where it begins in the Hugging Face tensor."""
    length: int
    """Rows or columns."""


def places(rule: Rule, shape: Sizes) -> list[Place]:
    """Every place that has a parameter of this rule, in order."""
    if not rule.of_layer:
        return [Place()]
    layers, sparse = range(shape.layers), set(shape.sparse_layers)
    match rule.layers:
        case "dense" | "sparse":
            having = [layer for layer in layers if (layer in sparse) == (rule.layers == "sparse")]
        case "attention" | "delta":
            having = [layer for layer in layers if (layer in shape.delta_layers) == (rule.layers == "delta")]
        case _:
            having = list(layers)
    experts = range(shape.experts) if rule.of_expert else [None]
    return [Place(layer, expert) for layer in having for expert in experts]


def parameters_of(rule: Rule) -> tuple[Tensor, ...]:
    """The tensors of a rule without those that hold a constant."""
    return tuple(tensor for tensor in rule.tensors if tensor.constant is None)


def tensor_size(tensor: Tensor, shape: Sizes) -> tuple[int, ...]:
    """The dimensions of a Hugging Face tensor of a model of this shape."""
    return tuple(getattr(shape, name) for name in tensor.size)


def pieces(rule: Rule, shape: Sizes, rank: int, ranks: int) -> list[Piece]:
    """The slices that tensor-parallel rank `rank` of `ranks` owns, in the order of its parameter.

    Padding rows of the vocabulary belong to no piece. Sizes that the ranks cannot share evenly are
    refused before a model is built (config/checks.py).
    """
    sizes = [tensor_size(tensor, shape) for tensor in rule.tensors]
    match rule:
        case Replicated():
            return [Piece(0, 0, 0, 0, sizes[0][0])]
        case ColumnParallel():
            return list(_rows_of_each(sizes, rank, ranks))
        case GatedUp():
            return list(_rows_of_each(sizes, rank, ranks))
        case RowParallel():
            share = _share(sizes[0][1], ranks)
            return [Piece(0, 1, 0, rank * share, share)]
        case VocabularyParallel():
            start = rank * padded_share(sizes[0][0], ranks)
            length = min(padded_share(sizes[0][0], ranks), sizes[0][0] - start)
            return [Piece(0, 0, 0, start, length)] if length > 0 else []
        case QueryKeyValue():
            return list(_query_groups(shape, rank, ranks))
        case GatedQueryKeyValue():
            return list(_gated_query_groups(shape, rank, ranks))
        case DeltaInputs():
            parts = _delta_rows(shape)
            return _of_tensors(_rows_of_each([(rows,) for rows in parts], rank, ranks), parts, (0, 0, 0, 1, 2, 3))
        case GroupedDeltaInputs():
            return list(_delta_groups(shape, rank, ranks))
        case DeltaConvolution():
            parts = _delta_rows(shape)[:3]
            return _of_one_tensor(_rows_of_each([(rows,) for rows in parts], rank, ranks), parts)
        case JoinedGatedUp():
            half = (sizes[0][0] // 2,)
            return _of_one_tensor(_rows_of_each([half, half], rank, ranks), (*half, *half))
        case JoinedQueryKeyValue():
            rows = [heads * shape.head_dim for heads in (shape.heads, shape.query_groups, shape.query_groups)]
            return _of_one_tensor(_query_groups(shape, rank, ranks), rows)
    raise AssertionError(f"no layout for {type(rule).__name__}")


def local_size(rule: Rule, shape: Sizes, rank: int, ranks: int) -> tuple[int, ...]:
    """The dimensions of a rank's part of the parameter, padding included."""
    first = tensor_size(rule.tensors[0], shape)
    owned = pieces(rule, shape, rank, ranks)
    if isinstance(rule, VocabularyParallel):
        return (padded_share(first[0], ranks), *first[1:])
    along = sum(piece.length for piece in owned)
    return tuple(along if axis == owned[0].axis else length for axis, length in enumerate(first))


def padded_share(vocabulary: int, ranks: int) -> int:
    """Rows of the embedding on each tensor-parallel rank: the vocabulary over the ranks, rounded up."""
    return -(-vocabulary // ranks)


def _share(whole: int, ranks: int) -> int:
    assert whole % ranks == 0, f"{whole} is not divisible by {ranks} tensor-parallel ranks"
    return whole // ranks


def _rows_of_each(sizes: list[tuple[int, ...]], rank: int, ranks: int) -> Iterator[Piece]:
    local = 0
    for tensor, size in enumerate(sizes):
        share = _share(size[0], ranks)
        yield Piece(tensor, 0, local, rank * share, share)
        local += share


def _query_groups(shape: Sizes, rank: int, ranks: int) -> Iterator[Piece]:
    groups = _share(shape.query_groups, ranks)
    query_rows = _share(shape.heads, shape.query_groups) * shape.head_dim
    local = 0
    for group in range(rank * groups, (rank + 1) * groups):
        for tensor, rows in enumerate((query_rows, shape.head_dim, shape.head_dim)):
            yield Piece(tensor, 0, local, group * rows, rows)
            local += rows


def _gated_query_groups(shape: Sizes, rank: int, ranks: int) -> Iterator[Piece]:
    """A group's query heads, then their gates, then its key head and its value head."""
    groups, heads, width = _share(shape.query_groups, ranks), _share(shape.heads, shape.query_groups), shape.head_dim
    local = 0
    for group in range(rank * groups, (rank + 1) * groups):
        for part in range(2):  # queries, gates
            for head in range(group * heads, (group + 1) * heads):
                yield Piece(0, 0, local, (2 * head + part) * width, width)
                local += width
        for tensor in (1, 2):
            yield Piece(tensor, 0, local, group * width, width)
            local += width


def _delta_rows(shape: Sizes) -> tuple[int, ...]:
    """Rows of all queries, keys, values, gates, betas and alphas of a gated delta net."""
    keys = shape.delta_key_heads * shape.delta_key_dim
    values = shape.delta_value_heads * shape.delta_value_dim
    return keys, keys, values, values, shape.delta_value_heads, shape.delta_value_heads


def _delta_groups(shape: Sizes, rank: int, ranks: int) -> Iterator[Piece]:
    rows = [_share(whole, shape.delta_key_heads) for whole in _delta_rows(shape)]  # of a key head
    heads, local = _share(shape.delta_key_heads, ranks), 0
    for part, length in enumerate(rows):
        tensor, parts = (0, rows[:4]) if part < 4 else (1, rows[4:])
        before = sum(parts[: part - 4 * tensor])
        for head in range(rank * heads, (rank + 1) * heads):
            yield Piece(tensor, 0, local, head * sum(parts) + before, length)
            local += length


def _of_one_tensor(pieces_of_parts: Iterable[Piece], rows: Sequence[int]) -> list[Piece]:
    """Pieces of tensors of so many rows, as pieces of the tensor that holds these one after the other."""
    return _of_tensors(pieces_of_parts, rows, [0] * len(rows))


def _of_tensors(pieces_of_parts: Iterable[Piece], rows: Sequence[int], tensors: Sequence[int]) -> list[Piece]:
    """The same where several tensors hold them.

    Args:
        tensors: which of them holds each part; parts of one follow each other.
    """
    begins = [0, *accumulate(rows)]
    firsts = [begins[list(tensors).index(tensor)] for tensor in tensors]
    return [
        replace(
            piece,
            tensor=tensors[piece.tensor],
            start=begins[piece.tensor] - firsts[piece.tensor] + piece.start,
        )
        for piece in pieces_of_parts
    ]
