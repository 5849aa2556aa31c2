"""The CPU platform: Megatron-Core's modules see it, torch does not."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from megatron.core.dist_checkpointing import ShardedTensor
from megatron.core.optimizer import clip_grads
from megatron.core.tensor_parallel import random as megatron_random

from megatron_cpt.model.cpu_kernels import install_cpu_kernels
from megatron_cpt.parallel import cpu_platform
from tests.ranks import Ranks

PACKAGE = Path(cpu_platform.__file__).parents[1]

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="on a machine with CUDA the layer does nothing")


def test_megatron_factories_make_cpu_tensors_where_they_ask_for_cuda() -> None:
    proxy = megatron_random.torch
    assert proxy is not torch
    assert proxy.zeros(2, device="cuda").device.type == "cpu"
    assert proxy.tensor([1.0], device=proxy.cuda.current_device(), pin_memory=True).device.type == "cpu"


def test_a_shard_asked_for_on_cuda_is_made_on_the_cpu() -> None:
    """The function that makes it is the default of an argument, bound while Megatron's module is executed."""
    shard = ShardedTensor.from_rank_offsets("weight", torch.zeros(2, 3))
    shard.data = None
    shard.init_data("cuda")
    assert shard.data.shape == (2, 3)
    shard.data = None
    shard.init_data("cuda", lambda *shape, **options: options["device"])
    assert shard.data == "cuda"


def test_torch_itself_is_untouched() -> None:
    assert cpu_platform.installed()
    with pytest.raises((AssertionError, RuntimeError)):
        torch.zeros(2, device="cuda")
    with pytest.raises((AssertionError, RuntimeError)):
        torch.cuda.current_device()


def test_tensor_type_names_cuda_and_stays_usable_as_a_cast() -> None:
    assert torch.zeros(1).type() == "torch.cuda.FloatTensor"
    assert torch.zeros(1).type(torch.float64).dtype is torch.float64


def clipped() -> tuple[list[float], bool]:
    """Job: a gradient of length 5 after it was clipped to 1, and whether it is in the place where it was."""
    install_cpu_kernels()
    weight = torch.nn.Parameter(torch.zeros(2))
    weight.grad = torch.tensor([3.0, 4.0])
    place = weight.grad.data_ptr()
    clip_grads.clip_grad_by_total_norm_fp32([weight], max_norm=1.0, total_norm=5.0)
    return weight.grad.tolist(), weight.grad.data_ptr() == place


def test_gradients_are_clipped_in_their_place(one_rank: Ranks) -> None:
    [(gradient, in_place)] = one_rank.call(clipped)
    assert gradient == pytest.approx([0.6, 0.8], rel=1e-6)
    assert in_place


def test_events_and_streams_do_nothing_and_say_done() -> None:
    event = cpu_platform.Stream().record_event()
    assert event.query()
    assert event.elapsed_time(cpu_platform.Event()) == 0.0


IMPORTED_ALONE = """
import sys
before = list(sys.meta_path)
import megatron_cpt
import megatron_cpt.config.schema
assert sys.meta_path == before
assert not {"torch", "megatron", "megatron_cpt.parallel"} & set(sys.modules)
import torch
cuda, cast = torch.Tensor.cuda, torch.Tensor.type
import megatron_cpt.planning.plan
assert sys.meta_path == before
assert torch.Tensor.cuda is cuda and torch.Tensor.type is cast
assert torch.zeros(1).type() == "torch.FloatTensor"
"""


@pytest.mark.ci
def test_importing_the_package_changes_nothing() -> None:
    """In a fresh process, the torch-free half included."""
    subprocess.run([sys.executable, "-c", IMPORTED_ALONE], check=True)


def test_every_room_that_imports_megatron_brings_the_platform_first() -> None:
    """A package's __init__ runs before its files, whose imports of megatron stand above those of our own."""
    for path in PACKAGE.glob("*/*.py"):
        modules = [node.module for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.ImportFrom)]
        if any(module is not None and module.split(".")[0] == "megatron" for module in modules):
            first = ast.parse((path.parent / "__init__.py").read_text())
            assert "megatron_cpt.parallel" in ast.unparse(first), path


@pytest.mark.ci
@pytest.mark.parametrize("module", ["parallel.groups", "checkpoint.convert", "evaluate.likelihood"])
def test_megatron_runs_on_the_platform_whatever_is_imported_first(module: str) -> None:
    code = f"import megatron_cpt.{module}, megatron.core.utils, torch; assert megatron.core.utils.torch is not torch"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_every_megatron_module_runs_on_the_platform() -> None:
    left = [
        name
        for name, module in sys.modules.items()
        if name.startswith("megatron.core.") and getattr(module, "torch", None) is torch
    ]
    assert left == []
