"""Traces of chosen steps, by torch's profiler: chrome://tracing, Perfetto and TensorBoard show them."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch.profiler import ProfilerActivity, profile

from megatron_cpt.config.profile import profiled_steps
from megatron_cpt.parallel import groups
from megatron_cpt.train.assemble import Run


@contextmanager
def profiled(run: Run, step: int) -> Iterator[None]:
    """Traces what happens inside on every rank, if `run.profile` names the step; else costs nothing."""
    chosen = run.config.run.profile
    if chosen is None or step not in profiled_steps(chosen):
        yield
        return
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if torch.cuda.is_available() else [])]
    with profile(activities=activities, record_shapes=True, profile_memory=True) as trace:
        yield
    run.folder.profile.mkdir(exist_ok=True)
    trace.export_chrome_trace(str(run.folder.profile / f"step-{step:08}-rank-{groups.rank():05}.json.gz"))
