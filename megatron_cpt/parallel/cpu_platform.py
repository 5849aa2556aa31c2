"""A CPU platform for Megatron-Core: real Megatron modules, schedules and optimizers on gloo.

Megatron-Core takes CUDA for granted: `device=torch.cuda.current_device()`, `torch.zeros(...,
device="cuda")`, streams and events. Where CUDA is there, nothing here does anything. Where it is not,
an import finder gives every `megatron.core` module, once executed, another value for its global name
`torch`: a module with the same dictionary, in which the few factory functions and the `torch.cuda`
names that Megatron calls work on the CPU. torch itself stays untouched, save three methods that look
at no module's globals (`Tensor.cuda`, `Module.cuda`, `Tensor.type`). There is no cost per operation.

The packages that import megatron install the finder first, by `import megatron_cpt.parallel` in their
`__init__`; torch is imported only when a megatron module is.
"""

import contextlib
import functools
import sys
import types
import warnings
from collections.abc import Callable, Sequence
from importlib.machinery import ModuleSpec
from typing import Any

from megatron_cpt.parallel.mcore_compat import NAMES_USED_BUT_ABSENT
from megatron_cpt.parallel.patches import replace_name

_FACTORIES = [
    "tensor",
    "zeros",
    "ones",
    "empty",
    "full",
    "arange",
    "rand",
    "randn",
    "empty_like",
    "zeros_like",
    "ones_like",
    "as_tensor",
]


class _CpuFinder:
    """Import finder that adapts `megatron.core` modules when there is no CUDA."""

    def __init__(self) -> None:
        self._torch: types.ModuleType | None = None

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: types.ModuleType | None = None
    ) -> ModuleSpec | None:
        """Finds what the other finders find, with an execution step of our own behind it."""
        if name != "megatron.core" and not name.startswith("megatron.core."):
            return None
        if not self._needed():
            sys.meta_path.remove(self)
            return None
        spec = next(
            (spec for finder in sys.meta_path if finder is not self and (spec := finder.find_spec(name, path, target))),
            None,
        )
        if spec is not None and spec.loader is not None and hasattr(spec.loader, "get_code"):
            execute = spec.loader.exec_module
            # A loader serves one module: replacing its method touches nobody else.
            spec.loader.exec_module = functools.partial(self._execute, execute)  # type: ignore[method-assign]
        return spec

    def _needed(self) -> bool:
        if self._torch is None:
            import torch  # noqa: PLC0415  (this file must cost nothing until a megatron module is imported)

            if torch.cuda.is_available():
                return False
            # Megatron says in every process that it has neither Transformer Engine nor Apex; `doctor` says it once.
            warnings.filterwarnings("ignore", ".*(Apex|Transformer Engine).*", UserWarning)
            _adapt_tensor_methods(torch)
            self._torch = _cpu_torch(torch)
        return True

    def _execute(self, execute: Callable[[types.ModuleType], None], module: types.ModuleType) -> None:
        execute(module)
        if module.__dict__.get("torch") is sys.modules["torch"]:
            module.__dict__["torch"] = self._torch
        _adapt_module(module)


def install() -> None:
    """Puts the finder in place, once. Imports nothing but the standard library."""
    if not any(isinstance(finder, _CpuFinder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _CpuFinder())


def installed() -> bool:
    """Whether Megatron-Core runs on the CPU platform in this process."""
    return any(isinstance(finder, _CpuFinder) and finder._torch is not None for finder in sys.meta_path)


def _cpu_torch(torch: types.ModuleType) -> types.ModuleType:
    """A copy of the torch module (a plain dictionary copy) whose CUDA names work on the CPU."""
    proxy = types.ModuleType("torch")
    proxy.__dict__.update(torch.__dict__)
    for name in _FACTORIES:
        setattr(proxy, name, on_cpu(getattr(torch, name)))
    proxy.autocast = lambda device_type, *rest, **options: torch.autocast(  # type: ignore[attr-defined]
        "cpu" if device_type == "cuda" else device_type, *rest, **options
    )
    cuda = types.ModuleType("torch.cuda")
    cuda.__dict__.update(torch.cuda.__dict__)
    cuda.__dict__.update(_cuda_names(torch))
    nvtx = types.ModuleType("torch.cuda.nvtx")
    nvtx.__dict__.update(torch.cuda.nvtx.__dict__, range_push=nothing(), range_pop=nothing())
    cuda.nvtx = nvtx  # type: ignore[attr-defined]
    proxy.cuda = cuda  # type: ignore[attr-defined]
    return proxy


def on_cpu(factory: Callable[..., Any]) -> Callable[..., Any]:
    """A tensor factory that takes `device="cuda"` for the CPU and ignores pinned memory."""

    @functools.wraps(factory)
    def make(*sizes: Any, **options: Any) -> Any:
        if str(options.get("device")).startswith("cuda"):
            options["device"] = "cpu"
        options.pop("pin_memory", None)
        return factory(*sizes, **options)

    return make


COMPILED_ON_GPU = "compiled_on_gpu"
"""Attribute of functions that Megatron-Core compiles where CUDA is."""


def _not_compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function itself, marked."""
    setattr(function, COMPILED_ON_GPU, True)
    return function


def nothing() -> Callable[..., None]:
    """A function that does nothing. Each name gets its own: torch._dynamo refuses one object under two names."""
    return lambda *rest, **options: None


def _cuda_names(torch: types.ModuleType) -> dict[str, Any]:
    """What Megatron-Core calls in torch.cuda, on the CPU."""
    stream = Stream()
    cpu = torch.device("cpu")
    return {
        "current_device": lambda: cpu,
        "device_count": lambda: 1,
        "synchronize": nothing(),
        "set_device": nothing(),
        "empty_cache": nothing(),
        "Event": Event,
        "Stream": Stream,
        "current_stream": lambda *rest: stream,
        "default_stream": lambda *rest: stream,
        "stream": lambda *rest: contextlib.nullcontext(),
        "get_rng_state": lambda *rest: torch.get_rng_state(),
        "set_rng_state": lambda state, *rest: torch.set_rng_state(state),
        "manual_seed": lambda seed: torch.default_generator.manual_seed(int(seed)) and None,
        "is_current_stream_capturing": lambda: False,
        "memory_allocated": lambda *rest: 0,
        "max_memory_allocated": lambda *rest: 0,
    }


class Event:
    """torch.cuda.Event where everything is done when the call returns."""

    def __init__(self, *rest: Any, **options: Any) -> None: ...

    def record(self, *rest: Any) -> None: ...

    def wait(self, *rest: Any) -> None: ...

    def synchronize(self) -> None: ...

    def query(self) -> bool:
        return True

    def elapsed_time(self, end: "Event") -> float:
        return 0.0


class Stream:
    """torch.cuda.Stream where there is one queue, and it is always empty."""

    cuda_stream = 0

    def __init__(self, *rest: Any, **options: Any) -> None: ...

    def wait_stream(self, stream: "Stream") -> None: ...

    def wait_event(self, event: Event) -> None: ...

    def record_event(self, event: Event | None = None) -> Event:
        return event or Event()

    def synchronize(self) -> None: ...

    def query(self) -> bool:
        return True


def _adapt_tensor_methods(torch: types.ModuleType) -> None:
    """Makes `.cuda()` the identity and lets `.type()` name CUDA types: Megatron's optimizer compares these names."""
    plain_type = torch.Tensor.type

    def cuda_type(tensor: Any, *rest: Any, **options: Any) -> Any:
        name = plain_type(tensor, *rest, **options)
        return name if rest or options or "cuda" in name else name.replace("torch.", "torch.cuda.", 1)

    replace_name("torch", "Tensor.type", cuda_type)
    replace_name("torch", "Tensor.cuda", lambda tensor, *rest, **options: tensor)
    replace_name("torch", "nn.Module.cuda", lambda module, *rest, **options: module)


def _adapt_module(module: types.ModuleType) -> None:
    """What single modules of Megatron-Core need beyond another `torch` (patches.py has the reasons)."""
    name, names = module.__name__, module.__dict__
    for absent, value in NAMES_USED_BUT_ABSENT.get(name, {}).items():
        if absent not in names:
            replace_name(name, absent, value)
    match name:
        case "megatron.core.jit":
            replace_name(name, "jit_fuser", _not_compiled)
        case "megatron.core.tensor_parallel.random":
            rng = sys.modules["torch"]
            replace_name(
                name, "_get_cuda_rng_state", lambda device="cuda", clone=False, graph_safe=False: rng.get_rng_state()
            )
            replace_name(
                name, "_set_cuda_rng_state", lambda state, device=-1, graph_safe=False: rng.set_rng_state(state)
            )
        case "megatron.core.dist_checkpointing.mapping":
            replace_name(name, "ShardedTensor.init_data", _init_data(names["ShardedTensor"].init_data, names["torch"]))
        case "megatron.core.tensor_parallel.mappings":
            from megatron_cpt.parallel import uneven_collectives  # noqa: PLC0415  (it imports torch)

            gather, scatter = names["_gather_along_first_dim"], names["_reduce_scatter_along_first_dim"]
            replace_name(name, "_gather_along_first_dim", uneven_collectives.gather_of_any_parts(gather))
            replace_name(name, "_reduce_scatter_along_first_dim", uneven_collectives.scatter_to_any_parts(scatter))
        case "megatron.core.transformer.moe.token_dispatcher":
            replace_name(name, "maybe_move_tensor_to_cpu", _splits_to_host)


def _init_data(init_data: Callable[..., None], torch: Any) -> Callable[..., None]:
    """ShardedTensor.init_data, with this torch's `empty` where the caller names no other."""

    def init(tensor: Any, device: Any, init_fn: Callable[..., Any] = torch.empty) -> None:
        init_data(tensor, device, init_fn)

    return init


def _splits_to_host(tensor: Any, as_numpy: bool = False, record_stream: bool = False) -> Any:
    """Split sizes as a numpy array where asked for."""
    return tensor.numpy() if as_numpy and hasattr(tensor, "numpy") else tensor
