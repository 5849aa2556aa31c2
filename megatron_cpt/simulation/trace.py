"""What a program under fake tensors allocates, sends, computes and waits for, operation by operation.

Memory is that of storages, from the operation that makes one to its last reference: what the caching allocator calls
allocated. Costs follow the roofline model (doi:10.1145/1498765.1498785): floating-point operations of products, and
bytes read and written of all other operations, each counted as a kernel of its own.
"""

import functools
import sys
import weakref
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor
from torch._C._distributed_c10d import FakeWork
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

Site = tuple[str, int]
"""File and line."""

# Whose lines are named, and our own files that stand between them and torch.
_PROGRAM = ("/megatron_cpt/", "/megatron/core/")
_NOT_THE_PROGRAM = ("/megatron_cpt/simulation/", "/megatron_cpt/parallel/cpu_platform.py")


@dataclass(frozen=True)
class Transfer:
    """A kind of collective or of message."""

    operation: str
    """all_reduce, all_gather, reduce_scatter, all_to_all, broadcast, send, recv, barrier."""
    group: str
    """torch's name of the process group."""


@dataclass(frozen=True)
class Allocation:
    """A storage that is there."""

    size: int
    """Bytes."""
    kind: str
    """What was done when it was made."""
    site: Site
    """Where it was made."""


@dataclass
class Counts:
    """What is added up while a part of the program runs."""

    kernels: int = 0
    """Kernels that the host starts."""
    flops: float = 0.0
    """Floating-point operations of products."""
    moved: float = 0.0
    """Bytes read and written."""
    seconds: float = 0.0
    """Roofline time of all operations."""
    calls: Counter[Transfer] = field(default_factory=Counter)
    """Collectives and messages."""
    bytes: Counter[Transfer] = field(default_factory=Counter)
    """Their bytes: of the whole tensor, the larger of what goes in and what comes out."""
    syncs: Counter[Site] = field(default_factory=Counter)
    """Places where the host waits for the device."""


_COLLECTIVES = {
    "allreduce_": "all_reduce",
    "allreduce_coalesced_": "all_reduce",
    "allgather_": "all_gather",
    "_allgather_base_": "all_gather",
    "allgather_coalesced_": "all_gather",
    "allgather_into_tensor_coalesced_": "all_gather",
    "reduce_scatter_": "reduce_scatter",
    "_reduce_scatter_base_": "reduce_scatter",
    "reduce_scatter_tensor_coalesced_": "reduce_scatter",
    "alltoall_": "all_to_all",
    "alltoall_base_": "all_to_all",
    "broadcast_": "broadcast",
    "recv_": "recv",
    "recv_any_source_": "recv",
}
# Products that fake tensors do not check, and the place of their first matrix among the arguments.
_PRODUCTS = {"aten::mm": 0, "aten::addmm": 1}
_INDEXED = {"aten::index", "aten::index_put_", "aten::index_put", "aten::_index_put_impl_"}
# No kernel.
_FREE = {f"aten::{name}" for name in ("detach", "empty", "empty_like", "empty_strided", "new_empty", "_unsafe_view")}
# Compares random states, which are the host's.
_ON_HOST = "/megatron/core/tensor_parallel/random.py"


class Trace(TorchDispatchMode):
    """Counts what runs inside it. It stands inside a FakeTensorMode."""

    def __init__(self, selected: Callable[[Tensor], int], flops: float, bandwidth: float) -> None:
        """Begins with nothing counted.

        Args:
            selected: how many elements a mask is taken to select.
            flops: FLOP/s that products reach.
            bandwidth: bytes/s that memory gives.
        """
        super().__init__()
        self.kind = ""
        """What is being done: the kind of new allocations."""
        self._selected, self._flops, self._bandwidth = selected, flops, bandwidth
        self._live: dict[int, Allocation] = {}
        self._fused: list[weakref.ref[Any]] | None = None
        self.ranks: dict[str, list[int]] = {}
        """Ranks of the process groups that were used, by torch's name."""
        self.allocated = 0
        """Bytes that are allocated now."""
        self.restart()

    def restart(self) -> None:
        """Counts from nothing again; what is allocated stays, and the peak is that of now."""
        self.counts = Counts()
        self.peak = self.allocated
        """Most bytes that were allocated at once."""
        self._before = dict(self._live)
        self._log: list[tuple[int, Allocation | None]] = []  # storages made, and given back
        self._log_at_peak = 0

    def name(self, tensors: Iterable[Tensor], kind: str) -> None:
        """Says what the storages of tensors are there for."""
        for key in {tensor.untyped_storage()._cdata for tensor in tensors}:
            self._live[key] = replace(self._live[key], kind=kind)

    def at_peak(self) -> list[Allocation]:
        """What was allocated when it was most."""
        live = dict(self._before)
        for key, allocation in self._log[: self._log_at_peak]:
            if allocation is None:
                live.pop(key, None)
            else:
                live[key] = allocation
        return list(live.values())

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = func._schema.name
        if name == "aten::_local_scalar_dense":
            return self._read(args[0], func)
        if name.startswith("c10d::"):
            return self._transfer(func, name.removeprefix("c10d::"), args)
        if name == "aten::masked_select":
            self.wait()
            result = args[0].new_empty(self._selected(args[1]))
        else:
            if self._fused is None and name in _INDEXED and _counts_mask(args):
                self.wait()
            result = func(*args, **kwargs)
        self._count(func, name, args, kwargs, result)
        for tensor in tree_leaves(result):
            self._note(tensor)
        return result

    def wait(self) -> None:
        """Notes that the host waits for the device."""
        site = _site()
        if not site[0].endswith(_ON_HOST):
            self.counts.syncs[site] += 1

    def add_kernel(self, moved: float, flops: float = 0.0) -> None:
        """Counts a kernel that reads and writes so many bytes."""
        self.counts.kernels += 1
        self.counts.moved += moved
        self.counts.flops += flops
        self.counts.seconds += max(flops / self._flops, moved / self._bandwidth)

    def as_one_kernel(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """A function as a compiler fuses it: it reads its arguments, writes its results, and keeps nothing else."""

        @functools.wraps(function)
        def fused(*args: Any, **kwargs: Any) -> Any:
            if self._fused is not None:
                return function(*args, **kwargs)
            self._fused = []
            try:
                result = function(*args, **kwargs)
            finally:
                made, self._fused = self._fused, None
            for storage in filter(None, (reference() for reference in made)):
                self._add(storage)
            self.add_kernel(_moved(args, kwargs, result))
            return result

        return fused

    def _read(self, tensor: Tensor, func: Any) -> Any:
        """A number of a tensor: its own where it is known, else 1."""
        if not isinstance(tensor, FakeTensor):
            return func(tensor)
        self.wait()
        return 1.0 if tensor.dtype.is_floating_point else 1

    def _transfer(self, func: Any, name: str, args: Any) -> Any:
        """A collective that is over when it begins, and leaves its tensors as they are."""
        groups = [leaf for leaf in tree_leaves(args) if isinstance(leaf, torch.ScriptObject)]
        group = next(unboxed for leaf in groups if (unboxed := _group(leaf)) is not None)
        self.ranks.setdefault(group.group_name, torch.distributed.get_process_group_ranks(group))
        kind = Transfer(_COLLECTIVES.get(name, name), group.group_name)
        self.counts.calls[kind] += 1
        self.counts.bytes[kind] += max(sum(map(_size, _tensors(argument))) for argument in args)
        given = [FakeWork().boxed() if "Work" in str(one.type) else args[0] for one in func._schema.returns]
        return given[0] if len(given) == 1 else tuple(given)

    def _count(self, func: Any, name: str, args: Any, kwargs: Mapping[str, Any], result: Any) -> None:
        """Adds the cost of an operation."""
        if self._fused is not None or not name.startswith("aten::") or name in _FREE or func.is_view:
            return
        if name in _PRODUCTS:
            _check_product(name, *args[_PRODUCTS[name] :][:2])
        formula = flop_registry.get(func._overloadpacket)
        flops = 0.0 if formula is None else float(formula(*args, **kwargs, out_val=result))
        self.add_kernel(_moved(args, kwargs, result), flops)

    def _note(self, tensor: Any) -> None:
        """Notes the storage of a result, if it is new."""
        if not isinstance(tensor, FakeTensor):
            return
        storage = tensor.untyped_storage()
        if storage._cdata in self._live:
            return
        if self._fused is not None:
            self._fused.append(weakref.ref(storage))
        else:
            self._add(storage)

    def _add(self, storage: Any) -> None:
        key, allocation = storage._cdata, Allocation(storage.nbytes(), self.kind, _site())
        if key in self._live:
            return
        self._live[key] = allocation
        self._log.append((key, allocation))
        self.allocated += allocation.size
        weakref.finalize(storage, self._free, key)
        if self.allocated > self.peak:
            self.peak, self._log_at_peak = self.allocated, len(self._log)

    def _free(self, key: int) -> None:
        self.allocated -= self._live.pop(key).size
        self._log.append((key, None))


def _site() -> Site:
    """The line of the program that is being run: ours or Megatron-Core's."""
    frame: Any = sys._getframe(2)
    while frame is not None:
        file = frame.f_code.co_filename
        if any(part in file for part in _PROGRAM) and not any(part in file for part in _NOT_THE_PROGRAM):
            return file, frame.f_lineno
        frame = frame.f_back
    return "", 0


def _check_product(name: str, first: Tensor, second: Tensor) -> None:
    """Refuses a product of two dtypes, which fake tensors take and no device does."""
    if first.dtype is not second.dtype:
        file, line = _site()
        raise RuntimeError(f"{file}:{line}: {name} of {first.dtype} and {second.dtype}, which no device multiplies")


def _group(boxed: Any) -> Any:
    """The process group that an operation was given; None of another object."""
    try:
        return torch.distributed.ProcessGroup.unbox(boxed)
    except RuntimeError:
        return None


def _tensors(values: Any) -> Iterator[Tensor]:
    return (leaf for leaf in tree_leaves(values) if isinstance(leaf, Tensor))


def _size(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def _moved(*values: Any) -> float:
    """Bytes of the tensors among arguments and results; what is both is read and written."""
    return float(sum(map(_size, _tensors(values))))


def _counts_mask(args: Any) -> bool:
    """Whether indexing has to count what a mask selects; one number is written wherever it is, without that."""
    masks = any(isinstance(index, Tensor) and index.dtype is torch.bool for index in args[1])
    return masks and not (len(args) > 2 and args[2].numel() == 1)
