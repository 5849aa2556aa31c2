"""The loss-equality matrix: every way to share the work must give the numbers of one process, also after a resume.

    python -m tests.parallel.matrix [ROW...]

All rows start from one Hugging Face folder of weights and train 20 steps on the same data in fp32. A row passes
when its losses (training and validation) are within 2e-6 of the one process's, gradient norms within 1e-5 of
them in proportion, and the exported parameters within PARAMETERS at the end.

A second table is of resumes of a distributed optimizer, from both kinds of its checkpoints, with gradients in one
bucket, in several and in one for each parameter, which are padded at their ends. A row passes when the losses of the
steps after the resume are those of the run that was not cut: to the last bit on the same layout, else within 2e-6, or
within BF16_LOSS in bf16. The last line counts the rows of both tables.
"""

import argparse
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from tests.checkpoint import hf_models
from tests.checkpoint.hf_models import all_tensors, assert_same_tensors
from tests.families.folders import MODELS, with_vocabulary
from tests.ranks import Ranks
from tests.train.runs import column, records_of, train, train_without_gpt_model
from tests.workshop import VOCABULARY, Workshop, build, write_model, write_tokenizer_of

LOSS = 2e-6
"""Nats per token."""
BF16_LOSS = 5e-4
"""Nats per token: where gradients are summed in another order, weights may round to the next bf16 number."""
GRADIENT_NORM = 1e-5
"""In proportion."""
PARAMETERS = 2e-5
"""Weights, of size 0.02 to 1, at a learning rate of 2e-3: Adam divides by a gradient's own size, so that an entry
whose gradient is rounding alone may go either way."""
BASES = {
    "dense": (),
    "experts": (),
    "experts, router z-loss": ("megatron.transformer.moe_z_loss_coeff=0.1",),
    "experts, sequence balance": (
        "megatron.transformer.moe_router_load_balancing_type=seq_aux_loss",
        "megatron.transformer.moe_aux_loss_coeff=0.1",
    ),
    "documents": ("data.attention=within_documents",),
    "gpt_oss": (),
    "llama4_text": (),
    "llama4_text, documents": ("data.attention=within_documents",),
    "qwen3_next": (),
    "qwen3_next, documents": ("data.attention=within_documents",),
}
"""Runs of one process, and their settings; those of experts have another model, and so have those of families."""
STEPS = (
    "training.tokens=20 steps",
    "checkpoint.save_interval=null",
    "validation.weight_updates=true",
    "validation.gradient_conflict=[general]",
)


@dataclass(frozen=True)
class Row:
    """One way to share the work."""

    ranks: int
    """Processes."""
    overrides: tuple[str, ...]
    """Settings, `section.key=value`."""
    base: str = "dense"
    """The run of one process that it is held to, by name."""

    def named(self, **parallel: object) -> "Row":
        """The row with further settings of `parallel`."""
        settings = (f"parallel.{name}={value}" for name, value in parallel.items())
        return replace(self, overrides=(*self.overrides, *settings))

    def of(self, base: str, *overrides: str) -> "Row":
        """The row with another base and further settings."""
        return replace(self, base=base, overrides=(*self.overrides, *overrides))


def row(ranks: int, **parallel: object) -> Row:
    """A row by its settings of `parallel`."""
    return Row(ranks, ()).named(**parallel)


OVERLAPS = {"distributed_optimizer": "true", "overlap_grad_reduce": "true", "overlap_param_gather": "true"}
ROWS = {
    "tensor 2": row(2, tensor=2),
    "tensor 2, sequence": row(2, tensor=2, sequence="true"),
    "pipeline 2": row(2, pipeline=2),
    "pipeline 2 x 2 chunks": row(2, pipeline=2, virtual_pipeline=2),
    "data 2": row(2),
    "data 2, overlapped reduction": row(2, overlap_grad_reduce="true"),
    "data 2, distributed optimizer": row(2, distributed_optimizer="true"),
    "data 2, distributed optimizer, both overlaps": row(2, **OVERLAPS),
    "tensor 2, pipeline 2": row(4, tensor=2, pipeline=2),
    "tensor 2, sequence, data 2, distributed optimizer": row(
        4, tensor=2, sequence="true", distributed_optimizer="true"
    ),
    "pipeline 2 x 2 chunks, data 2, both overlaps": row(4, pipeline=2, virtual_pipeline=2, **OVERLAPS),
    "context 2": row(2, context=2),
    "context 2, tensor 2, sequence": row(4, context=2, tensor=2, sequence="true"),
    "context 2, pipeline 2": row(4, context=2, pipeline=2),
    "context 2, data 2, distributed optimizer": row(4, context=2, distributed_optimizer="true"),
    "experts, data 2": Row(2, (), base="experts"),
    "experts, expert 2": Row(2, (), base="experts").named(expert=2),
    "experts, expert 2, distributed optimizer, both overlaps": Row(2, (), base="experts").named(expert=2, **OVERLAPS),
    "experts, expert 2, context 2": Row(2, (), base="experts").named(expert=2, context=2),
    "experts, expert 2, pipeline 2 x 2 chunks": Row(4, (), base="experts").named(
        expert=2, pipeline=2, virtual_pipeline=2
    ),
    "experts, tensor 2, sequence": Row(2, (), base="experts").named(tensor=2, sequence="true"),
    "experts, expert 2, tensor 2, sequence": Row(4, (), base="experts").named(expert=2, tensor=2, sequence="true"),
    "experts, router z-loss, expert 2, context 2": Row(2, (), base="experts, router z-loss").named(expert=2, context=2),
    "experts, router z-loss, tensor 2, sequence": Row(2, (), base="experts, router z-loss").named(
        tensor=2, sequence="true"
    ),
    "experts, sequence balance, 8 micro batches": Row(
        1, ("training.micro_batch_size=1",), base="experts, sequence balance"
    ),
    "experts, sequence balance, tensor 2, sequence": Row(2, (), base="experts, sequence balance").named(
        tensor=2, sequence="true"
    ),
    "experts, recomputation, selective": Row(1, ("training.recompute=selective",), base="experts"),
    "within documents, pipeline 2 x 2 chunks": Row(2, (), base="documents").named(pipeline=2, virtual_pipeline=2),
    "within documents, tensor 2, sequence": Row(2, (), base="documents").named(tensor=2, sequence="true"),
    "within documents, context 2": Row(2, (), base="documents").named(context=2),
    "within documents, context 2, tensor 2, sequence": Row(4, (), base="documents").named(
        context=2, tensor=2, sequence="true"
    ),
    "within documents, context 2, pipeline 2 x 2 chunks": Row(4, (), base="documents").named(
        context=2, pipeline=2, virtual_pipeline=2
    ),
    "gpt_oss, tensor 2, sequence": Row(2, (), base="gpt_oss").named(tensor=2, sequence="true"),
    "gpt_oss, pipeline 2": Row(2, (), base="gpt_oss").named(pipeline=2),
    "gpt_oss, tensor 2, sequence, pipeline 2": Row(4, (), base="gpt_oss").named(tensor=2, sequence="true", pipeline=2),
    "gpt_oss, context 2": Row(2, (), base="gpt_oss").named(context=2),
    "gpt_oss, expert 2, distributed optimizer": Row(2, (), base="gpt_oss").named(
        expert=2, distributed_optimizer="true"
    ),
    "gpt_oss, expert 2, tensor 2, sequence": Row(4, (), base="gpt_oss").named(expert=2, tensor=2, sequence="true"),
    "gpt_oss, recomputation, selective": Row(1, ("training.recompute=selective",), base="gpt_oss"),
    "gpt_oss, recomputation, full": Row(1, ("training.recompute=full",), base="gpt_oss"),
    "llama4_text, tensor 2, sequence": Row(2, (), base="llama4_text").named(tensor=2, sequence="true"),
    "llama4_text, pipeline 2 x 2 chunks": Row(2, (), base="llama4_text").named(pipeline=2, virtual_pipeline=2),
    "llama4_text, context 2": Row(2, (), base="llama4_text").named(context=2),
    "llama4_text, expert 2, tensor 2, sequence": Row(4, (), base="llama4_text").named(
        expert=2, tensor=2, sequence="true"
    ),
    "llama4_text, expert 2, distributed optimizer": Row(2, (), base="llama4_text").named(
        expert=2, distributed_optimizer="true"
    ),
    "llama4_text, recomputation, selective": Row(1, ("training.recompute=selective",), base="llama4_text"),
    "llama4_text, recomputation, full": Row(1, ("training.recompute=full",), base="llama4_text"),
    "llama4_text, documents, context 2, tensor 2, sequence": Row(4, (), base="llama4_text, documents").named(
        context=2, tensor=2, sequence="true"
    ),
    "qwen3_next, tensor 2, sequence": Row(2, (), base="qwen3_next").named(tensor=2, sequence="true"),
    "qwen3_next, pipeline 2 x 2 chunks": Row(2, (), base="qwen3_next").named(pipeline=2, virtual_pipeline=2),
    "qwen3_next, tensor 2, sequence, pipeline 2": Row(4, (), base="qwen3_next").named(
        tensor=2, sequence="true", pipeline=2
    ),
    "qwen3_next, expert 2, distributed optimizer": Row(2, (), base="qwen3_next").named(
        expert=2, distributed_optimizer="true"
    ),
    "qwen3_next, recomputation, full": Row(1, ("training.recompute=full",), base="qwen3_next"),
    "qwen3_next, documents, tensor 2, sequence": Row(2, (), base="qwen3_next, documents").named(
        tensor=2, sequence="true"
    ),
    "qwen3_next, documents, pipeline 2": Row(2, (), base="qwen3_next, documents").named(pipeline=2),
    "recomputation, selective": Row(1, ("training.recompute=selective",)),
    "recomputation, full": Row(1, ("training.recompute=full",)),
    "tensor 2, sequence, recomputation, full": Row(2, ("training.recompute=full",)).named(tensor=2, sequence="true"),
    "8 micro batches accumulated in place of 4": Row(1, ("training.micro_batch_size=1",)),
    "pipeline 2, 8 micro batches": Row(2, ("training.micro_batch_size=1",)).named(pipeline=2),
}


@dataclass(frozen=True)
class Differences:
    """The largest differences of a run from the one process's."""

    loss: float
    """Nats per token, training and validation."""
    gradient_norm: float
    """In proportion."""
    parameters: float
    """Of one weight, at the end."""

    @property
    def passed(self) -> bool:
        """Whether all are within their bounds."""
        return self.loss <= LOSS and self.gradient_norm <= GRADIENT_NORM and self.parameters <= PARAMETERS


def model_of(chosen: Row, workshop: Workshop) -> Path:
    """The Hugging Face folder that a row trains."""
    if chosen.base == "odd":
        folder = workshop.folder / "hf-odd"
        if not folder.exists():
            write_model(folder, hidden_size=36, intermediate_size=58, num_attention_heads=2)
            write_tokenizer_of(workshop, folder)
        return folder
    family = chosen.base.partition(",")[0]
    if family in MODELS:
        return family_folder(workshop, family)
    return workshop.hf_with_experts() if chosen.base.startswith("experts") else workshop.hf


@dataclass(frozen=True)
class Resume:
    """A run of RESUMED_STEPS steps, cut after one of them and gone on with."""

    written: Row
    """Who wrote the checkpoint."""
    read: Row
    """Who goes on from it."""
    sharding: str
    """How its optimizer state was saved, which decides the step: dp_reshardable or fully_reshardable."""

    @property
    def step(self) -> int:
        """The last step before the cut."""
        return {"dp_reshardable": 2, "fully_reshardable": 4}[self.sharding]

    @property
    def bound(self) -> float:
        """The largest difference of a loss, nats per token."""
        if self.written == self.read:
            return 0.0
        return BF16_LOSS if BF16 in self.written.overrides else LOSS


RESUMED_STEPS = (
    *("training.tokens=6 steps", "training.global_batch_size=12", "training.micro_batch_size=1"),
    *(
        "checkpoint.save_interval=2 steps",
        "checkpoint.keep_every=4 steps",
        "checkpoint.keep_last=9",
        "validation.sets={}",
    ),
)
BUCKETS = {
    "one bucket": (),
    "several": ("megatron.ddp={bucket_size: 3000}",),
    "one a parameter": ("megatron.ddp={bucket_size: 20}",),
    "several, of 65536": ("megatron.ddp={bucket_size: 3000, pad_buckets_for_high_nccl_busbw: true}",),
}
"""Buckets that are padded at their ends, but for the first: by settings of `megatron.ddp`."""
BF16 = "training.precision=bf16"


def sharded(ranks: int, buckets: str, *overrides: str, base: str = "odd", **parallel: object) -> Row:
    """A row with a distributed optimizer."""
    overlaps = {"distributed_optimizer": "true", "overlap_grad_reduce": "true"}
    return Row(ranks, (*BUCKETS[buckets], *overrides), base).named(**overlaps, **parallel)


def resumes() -> dict[str, Resume]:
    """Resumes by name: who wrote, how, who reads."""
    written = {
        **{f"data {size}, {buckets}": sharded(size, buckets) for size in (2, 3, 4) for buckets in list(BUCKETS)[:3]},
        "data 3, several, of 65536": sharded(3, "several, of 65536"),
        "data 2, several, even sizes": sharded(2, "several", base="dense"),
        "data 3, several, even sizes": sharded(3, "several", base="dense"),
        "data 2, one a parameter, bf16": sharded(2, "one a parameter", BF16),
        "data 3, several, bf16": sharded(3, "several", BF16),
        "tensor 2, data 2, several": sharded(4, "several", tensor=2),
        "pipeline 2, data 2, one a parameter": sharded(4, "one a parameter", pipeline=2),
        "context 2, data 2, several": sharded(4, "several", context=2),
        "expert 2, several": sharded(2, "several", base="experts", expert=2),
        "qwen3_next, tensor 2, one bucket": sharded(2, "one bucket", base="qwen3_next", tensor=2, sequence="true"),
    }
    read = {
        "data 2, one a parameter": ("data 3, several", "data 1, one bucket"),
        "data 3, several": ("data 2, one bucket", "tensor 2, one bucket", "pipeline 2, one a parameter"),
        "data 3, one a parameter": ("data 2, one a parameter", "data 4, one a parameter"),
        "data 4, several": ("data 3, several",),
        "data 3, several, bf16": ("data 2, several, bf16",),
        "pipeline 2, data 2, one a parameter": ("data 2, several",),
        "tensor 2, data 2, several": ("data 3, one a parameter",),
        "qwen3_next, tensor 2, one bucket": ("qwen3_next, data 2, several", "qwen3_next, pipeline 2, one bucket"),
    }
    readers = written | {
        "data 1, one bucket": sharded(1, "one bucket"),
        "data 2, several, bf16": sharded(2, "several", BF16),
        "tensor 2, one bucket": sharded(2, "one bucket", tensor=2),
        "pipeline 2, one a parameter": sharded(2, "one a parameter", pipeline=2),
        "qwen3_next, data 2, several": sharded(2, "several", base="qwen3_next"),
        "qwen3_next, pipeline 2, one bucket": sharded(2, "one bucket", base="qwen3_next", pipeline=2),
    }
    table = {}
    for name, writer in written.items():
        for sharding in ("dp_reshardable", "fully_reshardable"):
            table[f"{name}; {sharding}"] = Resume(writer, writer, sharding)
        for other in read.get(name, ()):
            table[f"{name}; fully_reshardable; {other}"] = Resume(writer, readers[other], "fully_reshardable")
    name = "data 3, one a parameter; dp_reshardable; data 2, one a parameter"
    table[name] = Resume(written["data 3, one a parameter"], written["data 2, one a parameter"], "dp_reshardable")
    return table


RESUMES = resumes()


def run_uncut(ranks: Ranks, workshop: Workshop, run: Path, writer: Row) -> None:
    """Trains the run that a resume is held to, with all its checkpoints."""
    path = workshop.write_config(run, model={"hf": str(model_of(writer, workshop))})
    ranks.call(train, timeout=900, path=path, overrides=(*RESUMED_STEPS, *writer.overrides))


def resumed_difference(ranks: Ranks, workshop: Workshop, uncut: Path, run: Path, chosen: Resume) -> float:
    """Goes on with a copy of a run, cut; returns the largest difference of a loss, nats per token."""
    copy_until(uncut, run, chosen.step)
    run_uncut(ranks, workshop, run, chosen.read)
    assert f"resumed after step {chosen.step}" in (run / "log.txt").read_text()
    ours, theirs = records_of(run, "train"), records_of(uncut, "train")
    assert column(ours, "source_tokens") == column(theirs, "source_tokens")
    return largest(column(ours, "loss"), column(theirs, "loss"))


def copy_until(uncut: Path, run: Path, step: int) -> None:
    """A run as it was with the checkpoint of a step: a start goes on from there."""
    shutil.copytree(uncut, run)
    shutil.rmtree(run / "hf", ignore_errors=True)
    for checkpoint in (run / "checkpoints").iterdir():
        if int(checkpoint.name.removeprefix("step-")) > step:
            shutil.rmtree(checkpoint)


HAS_BOTH_MODELS = find_spec("megatron.core.models.hybrid") is not None
"""Whether the installed Megatron-Core has HybridModel beside GPTModel: from 0.18 on."""
SHARED = {
    "one process": row(1),
    "tensor 2, sequence": row(2, tensor=2, sequence="true"),
    "pipeline 2 x 2 chunks": row(2, pipeline=2, virtual_pipeline=2),
    "data 2, distributed optimizer, both overlaps": row(2, **OVERLAPS),
}
"""Layouts in which every family is compared."""
COMPARED = (
    *("llama_tied", "qwen2", "qwen3", "gemma2", "gemma3", "gpt_neox", "olmo2"),
    *("mistral", "mixtral", "qwen3_moe_mixed", "llama_biased", "phi3_long", "smollm3", "qwen2_moe", "olmo3"),
)
FAMILY_STEPS = (
    *("training.tokens=6 steps", "training.micro_batch_size=1"),
    *("checkpoint.save_interval=2 steps", "checkpoint.keep_every=4 steps", "checkpoint.keep_last=9"),
    *("validation.weight_updates=true", "validation.gradient_conflict=[general]"),
)
BUILDERS = {
    **{f"{model}; {name}": replace(layout, base=model) for model in COMPARED for name, layout in SHARED.items()},
    "llama_tied; tensor 2, pipeline 2": row(4, tensor=2, pipeline=2).of("llama_tied"),
    "llama3_rope_short; context 2": row(2, context=2).of("llama3_rope_short"),
    "gemma3; within documents, context 2": row(2, context=2).of("gemma3", "data.attention=within_documents"),
    "qwen2; within documents, pipeline 2 x 2 chunks": row(2, pipeline=2, virtual_pipeline=2).of(
        "qwen2", "data.attention=within_documents"
    ),
    "qwen3_moe_mixed; expert 2, distributed optimizer": row(2, expert=2, distributed_optimizer="true").of(
        "qwen3_moe_mixed"
    ),
    "gpt_neox; recomputation, full": row(1).of("gpt_neox", "training.recompute=full"),
    "mixtral; recomputation, selective": row(1).of("mixtral", "training.recompute=selective"),
    "llama; z-loss": row(1).of("llama", "training.z_loss=1e-3"),
    "llama_tied; dropout, tensor 2, sequence": row(2, tensor=2, sequence="true").of("llama_tied", "model.dropout=0.1"),
    "llama; bf16, data 2, distributed optimizer": row(2, distributed_optimizer="true").of(
        "llama", "training.precision=bf16"
    ),
    "llama; frozen layers, a rate for each layer, pipeline 2": row(2, pipeline=2).of(
        "llama",
        "model.frozen.bottom=1",
        "optimizer.lr_multipliers.layers=[{first: 1, last: 2, multiplier: 0.5}]",
    ),
}
"""Layouts and settings in which HybridModel is held to GPTModel, by name; the base is a model of MODELS."""


def family_folder(workshop: Workshop, model: str) -> Path:
    """The Hugging Face folder of a small model of MODELS with the workshop's tokenizer."""
    folder = workshop.folder / f"hf-{model}"
    if not folder.exists():
        hf_models.write_model(folder, with_vocabulary(MODELS[model], VOCABULARY))
        write_tokenizer_of(workshop, folder)
    return folder


def compare_builders(ranks: Ranks, workshop: Workshop, folder: Path, chosen: Row) -> None:
    """Trains with GPTModel and HybridModel, and goes on with each from the other's checkpoint.

    Raises:
        AssertionError: anything differs in a bit.
    """
    uncut = {"GPTModel": folder / "gpt", "HybridModel": folder / "hybrid"}
    cut = {"GPTModel": folder / "gpt from hybrid", "HybridModel": folder / "hybrid from gpt"}
    # One from a checkpoint whose optimizer state is saved in a run's own layout, one from the other kind.
    resumes = {"GPTModel": (uncut["HybridModel"], 4), "HybridModel": (uncut["GPTModel"], 2)}
    for runs in (uncut, cut):
        for model, job in (("GPTModel", train), ("HybridModel", train_without_gpt_model)):
            run = runs[model]
            if run is cut[model]:
                copy_until(resumes[model][0], run, resumes[model][1])
            hf = family_folder(workshop, chosen.base)
            path = workshop.write_config(run, model={"hf": str(hf)}, checkpoint={"export_hf": {"end": True}})
            ranks.call(job, timeout=900, path=path, overrides=(*FAMILY_STEPS, *chosen.overrides))
            assert (run / "log.txt").read_text().split("kernels: ")[-1].startswith(f"model: {model};")
            assert_same_tensors(run / "hf", uncut["GPTModel"] / "hf")
            for kind in ("train", "validation", "weights", "gradients"):
                assert records_of(run, kind) == records_of(uncut["GPTModel"], kind) != [], f"{model}: {kind}"
    for model, run in cut.items():
        assert f"resumed after step {resumes[model][1]}" in (run / "log.txt").read_text()


def run_row(ranks: Ranks, workshop: Workshop, run: Path, chosen: Row) -> None:
    """Trains a row, and exports what it trained."""
    model = {"hf": str(model_of(chosen, workshop))}
    path = workshop.write_config(run, tasks=workshop.tasks, model=model, checkpoint={"export_hf": {"end": True}})
    ranks.call(train, timeout=900, path=path, overrides=(*STEPS, *BASES[chosen.base], *chosen.overrides))


def differences(run: Path, reference: Path) -> Differences:
    """Compares two runs."""
    ours, theirs = records_of(run, "train"), records_of(reference, "train")
    norms = np.array(column(theirs, "grad_norm"))
    tensors, expected = all_tensors(run / "hf"), all_tensors(reference / "hf")
    assert set(tensors) == set(expected)
    return Differences(
        loss=max(
            largest(column(records_of(run, kind), "loss"), column(records_of(reference, kind), "loss"))
            for kind in ("train", "validation")
        ),
        gradient_norm=largest(column(ours, "grad_norm") / norms, np.ones_like(norms)),
        parameters=max(float((tensors[name] - expected[name]).abs().max()) for name in expected),
    )


def largest(ours: object, theirs: object) -> float:
    """The largest difference of two lists of numbers."""
    return float(np.abs(np.subtract(ours, theirs)).max())


def main() -> int:
    """Prints the tables. Returns 0 if every row passed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rows", nargs="*", metavar="ROW", help="names of rows (default: all)")
    builders = BUILDERS if HAS_BOTH_MODELS else {}
    names = parser.parse_args().rows or [*ROWS, *RESUMES, *builders]
    # What the runs themselves tell goes nowhere: the ranks, started below, inherit the file number.
    sys.stdout = os.fdopen(os.dup(1), "w")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    pools = {size: Ranks(size) for size in (1, 2, 3, 4)}
    with tempfile.TemporaryDirectory() as scratch:
        workshop = build(Path(scratch) / "workshop")
        passed = print_parity(pools, workshop, Path(scratch), [name for name in names if name in ROWS])
        passed += print_resumes(pools, workshop, Path(scratch), [name for name in names if name in RESUMES])
        passed += print_builders(pools, workshop, Path(scratch), [name for name in names if name in BUILDERS])
    for pool in pools.values():
        pool.stop()
    print(f"{passed} rows passed, {len(names) - passed} failed")
    return 0 if passed == len(names) else 1


def print_parity(pools: Mapping[int, Ranks], workshop: Workshop, folder: Path, names: Sequence[str]) -> int:
    """Prints the table of layouts. Returns how many rows passed."""
    if not names:
        return 0
    passed = 0
    references = {base: folder / base for base in {ROWS[name].base for name in names}}
    for base, reference in references.items():
        run_row(pools[1], workshop, reference, Row(1, (), base))
    print(f"{'':<56} ranks  loss     gradient norm  parameters  seconds")
    for number, name in enumerate(names):
        started = time.perf_counter()
        try:
            run_row(pools[ROWS[name].ranks], workshop, folder / str(number), ROWS[name])
            found = differences(folder / str(number), references[ROWS[name].base])
        except AssertionError as error:
            print(f"{name:<56} {ROWS[name].ranks:>5}  FAILED: {str(error).strip().splitlines()[-1]}", flush=True)
            continue
        passed += found.passed
        print(
            f"{name:<56} {ROWS[name].ranks:>5}  {found.loss:.1e}  {found.gradient_norm:.1e}"
            f"        {found.parameters:.1e}     {time.perf_counter() - started:5.1f}"
            f"  {'passed' if found.passed else 'FAILED'}",
            flush=True,
        )
    return passed


def print_resumes(pools: Mapping[int, Ranks], workshop: Workshop, folder: Path, names: Sequence[str]) -> int:
    """Prints the table of resumes. Returns how many rows passed."""
    if not names:
        return 0
    passed, uncut = 0, dict[Row, Path]()
    print(f"{'written by; as; read by, if by another layout':<76} loss     bound")
    for number, name in enumerate(names):
        chosen = RESUMES[name]
        try:
            if chosen.written not in uncut:
                run_uncut(pools[chosen.written.ranks], workshop, folder / f"uncut {number}", chosen.written)
                uncut[chosen.written] = folder / f"uncut {number}"
            run = folder / f"resumed {number}"
            found = resumed_difference(pools[chosen.read.ranks], workshop, uncut[chosen.written], run, chosen)
        except AssertionError as error:
            print(f"{name:<76} FAILED: {str(error).strip().splitlines()[-1]}", flush=True)
            continue
        passed += found <= chosen.bound
        print(
            f"{name:<76} {found:.1e}  {chosen.bound:.0e}  {'passed' if found <= chosen.bound else 'FAILED'}", flush=True
        )
    return passed


def print_builders(pools: Mapping[int, Ranks], workshop: Workshop, folder: Path, names: Sequence[str]) -> int:
    """Prints the table of HybridModel against GPTModel. Returns how many rows passed."""
    passed = 0
    for number, name in enumerate(names):
        chosen, found = BUILDERS[name], "the same bits"
        (folder / f"builders {number}").mkdir()
        try:
            compare_builders(pools[chosen.ranks], workshop, folder / f"builders {number}", chosen)
            passed += 1
        except AssertionError as error:
            found = f"FAILED: {str(error).strip().splitlines()[-1]}"
        print(f"HybridModel, {name:<63} {chosen.ranks:>5}  {found}", flush=True)
    return passed


if __name__ == "__main__":
    sys.exit(main())
