"""Fixes of Megatron-LM since Megatron-Core 0.16.1 on the paths that are used here, and what each means here: one table.

`tools/megatron_core_page.py` writes docs/megatron-core.md from it. Importing this file imports neither torch nor
Megatron-Core.
"""

from dataclasses import dataclass
from typing import Literal

NEWEST_RELEASE = "0.19.2"
"""The newest release whose fixes are in the table."""
NEWEST_COMMIT = "d98e8a64dd of 2026-08-22"
"""The newest commit of Megatron-LM's main branch that was read."""


@dataclass(frozen=True)
class Fix:
    """A pull request of Megatron-LM that corrects something."""

    number: int
    """Of the pull request."""
    date: str
    """When it was merged, or opened where it is open."""
    fault: str
    """What is wrong without it."""
    fixed_in: str
    """The first release that has it; `main`: merged, and in no release up to the newest; `open`: not merged."""
    here: Literal["mended", "refused", "not hit", "open"]
    """`mended`: right in every release. `refused`: what would meet the fault is an error. `open`: a run can meet it."""
    shown_by: str
    """The test that fails without the mending or the refusal; else the reason, or the test that shows it."""


_REFUSED = "tests/config/test_faults.py::test_what_some_release_of_megatron_core_gets_wrong_is_refused"
_REFUSED_BUFFERS = "tests/config/test_faults.py::test_gradient_buffers_that_were_not_tried_are_refused"
_PADDED = "tests/train/test_resume.py::test_a_resume_with_padded_buckets"

FIXES: dict[str, tuple[Fix, ...]] = {
    "checkpoints": (
        Fix(
            2288,
            "2026-03-31",
            (
                "an asynchronous save lets its host copies go once the writing process is forked; from a GPU they "
                "are pinned memory, which the next copy overwrites"
            ),
            "0.17.0",
            "mended",
            "tests/checkpoint/test_writer.py::test_copies_on_the_host_live_until_they_are_written",
        ),
        Fix(
            3537,
            "2026-02-24",
            "a distributed optimizer takes every entry of the optimizer's state for a tensor",
            "0.17.0",
            "mended",
            "tests/train/test_resume.py::test_two_processes_resume_exactly[data 2, distributed optimizer]",
        ),
        Fix(
            5077,
            "2026-08-21",
            (
                "`fully_reshardable`: with several buckets, parameters are cut out of the gathered state at offsets "
                "that count padding which is not there"
            ),
            "main",
            "mended",
            _PADDED,
        ),
        Fix(
            5898,
            "2026-07-20",
            "`dp_reshardable`: padding is saved beyond the length that the checkpoint states, and the save is refused",
            "open",
            "mended",
            _PADDED,
        ),
        Fix(
            6191,
            "2026-08-01",
            "`dp_reshardable`: a rank that has only padding of a bucket cannot save or load",
            "open",
            "mended",
            _PADDED,
        ),
        Fix(
            4319,
            "2026-04-24",
            "the table of contents and other parts of a checkpoint are unpickled without restriction",
            "0.17.1",
            "mended",
            "tests/checkpoint/test_vetting.py::test_a_program_in_the_table_of_contents_is_refused_and_does_not_run",
        ),
        Fix(
            4434,
            "2026-04-24",
            "values of a checkpoint are loaded as pickles without restriction",
            "0.17.1",
            "mended",
            "tests/checkpoint/test_vetting.py::test_a_program_among_the_values_is_refused_and_does_not_run",
        ),
        Fix(
            3845,
            "2026-03-24",
            "the asynchronous writer fails on weights that are stored in fp8",
            "0.17.0",
            "refused",
            _REFUSED,
        ),
        Fix(
            3591,
            "2026-02-26",
            "the persistent writing process keeps memory of earlier saves",
            "0.17.0",
            "not hit",
            "each save forks a process of its own (`checkpoint/save.py`)",
        ),
        Fix(
            4420,
            "2026-04-23",
            "nvidia-resiliency-ext is imported where it is not used",
            "0.18.0",
            "not hit",
            "nothing of it is asked for; the suite runs without it",
        ),
        Fix(
            3569,
            "2026-02-25",
            "`--load-main-params-from-ckpt` takes the weights of a parameter whose name contains another's",
            "0.17.0",
            "not hit",
            "main weights come from the optimizer state or the model (`checkpoint/load.py`)",
        ),
        Fix(
            3676,
            "2026-04-10",
            (
                "with several model chunks, an optimizer of experts takes the main weights of another chunk when it "
                "reloads them from a state"
            ),
            "0.18.0",
            "not hit",
            "the optimizer is built after the weights are loaded",
        ),
        Fix(
            1871,
            "2026-04-17",
            "the energy monitor can end the process when a checkpoint is saved",
            "0.18.0",
            "not hit",
            "the energy monitor is not imported",
        ),
    ),
    "gradients and optimizer": (
        Fix(
            3693,
            "2026-03-19",
            "with several optimizer instances the reduction waits for the wrong CUDA stream",
            "0.17.0",
            "refused",
            _REFUSED_BUFFERS,
        ),
        Fix(
            6048,
            "2026-07-28",
            "with several optimizer instances, parameters can belong to no rank and are never updated",
            "0.19.0",
            "refused",
            _REFUSED_BUFFERS,
        ),
        Fix(
            3007,
            "2026-02-08",
            (
                "offsets of parameters in a bucket leave out the padding between them; weights in mxfp8 are copied "
                "from there"
            ),
            "0.17.0",
            "refused",
            _REFUSED_BUFFERS,
        ),
        Fix(
            4800,
            "2026-05-22",
            "weights in mxfp8 are gathered wrongly without overlap",
            "0.18.0",
            "refused",
            _REFUSED_BUFFERS,
        ),
        Fix(5236, "2026-06-26", "the same in further layouts", "0.19.0", "refused", _REFUSED_BUFFERS),
        Fix(
            4982,
            "2026-06-04",
            "several optimizers wait for weights in mxfp8 by the wrong switch",
            "0.19.0",
            "refused",
            _REFUSED_BUFFERS,
        ),
        Fix(
            4410,
            "2026-04-25",
            "`reduce_scatter_with_fp32_accumulation` does not make one bucket of several, which it needs",
            "0.18.0",
            "not hit",
            "it changes nothing where gradients are summed in fp32, as they always are",
        ),
        Fix(
            4705,
            "2026-07-17",
            (
                "after a load, parameter groups that differ in the highest or lowest learning rate alone have each "
                "other's"
            ),
            "0.19.0",
            "not hit",
            (
                "groups differ in multipliers, and get the configuration's values after every load: "
                "tests/train/test_resume.py::test_every_optimizer_setting_changed_at_a_resume_counts_or_is_refused"
            ),
        ),
        Fix(
            7468,
            "2026-09-18",
            "the first update after a resume has the weight decay of the command line, not that of the schedule",
            "open",
            "not hit",
            "schedules are functions of the step (`config/schedule.py`); Megatron-Core's scheduler is not used",
        ),
        Fix(
            7279,
            "2026-09-12",
            "gradients in bf16 and fp32 go to one fused kernel, and norm and clipping are wrong",
            "open",
            "not hit",
            "all gradients are summed in fp32",
        ),
        Fix(
            5530,
            "2026-07-14",
            "the norm fails on a rank that has no gradients, for other norms than the 2-norm",
            "0.19.0",
            "not hit",
            "the norm is the 2-norm",
        ),
        Fix(4015, "2026-03-25", "zeros of gradients are counted in fp32", "0.17.0", "not hit", "zeros are not counted"),
    ),
    "pipelines": (
        Fix(
            4047,
            "2026-04-16",
            "with `deallocate_pipeline_outputs`, interleaved stages free what they are still sending",
            "0.18.0",
            "refused",
            _REFUSED,
        ),
        Fix(
            3562,
            "2026-03-24",
            "`recompute_num_layers` fails where it does not divide the layers of a stage",
            "0.17.0",
            "refused",
            _REFUSED,
        ),
        Fix(
            3739,
            "2026-03-11",
            "`fine_grained_activation_offloading` keeps what an evaluation left behind",
            "0.17.0",
            "open",
            "off unless it is passed through; needs Transformer Engine, so it was not run: use 0.17 or later with it",
        ),
        Fix(
            5901,
            "2026-07-28",
            "groups that a schedule makes for itself lack the data-parallel one",
            "0.19.0",
            "not hit",
            (
                "nothing of a step asks for that group; every layout of "
                "tests/parallel/test_parity.py::test_a_row_of_the_matrix runs without it"
            ),
        ),
    ),
    "tensor parallelism": (
        Fix(
            4084,
            "2026-04-03",
            (
                "without initialisation, weights lack the mark of tensor parallelism, and gradient norm and "
                "clipping are wrong"
            ),
            "0.18.0",
            "mended",
            "tests/parallel/test_parity.py::test_a_row_of_the_matrix[tensor 2, sequence]",
        ),
        Fix(
            5338,
            "2026-07-02",
            "the sum over ranks of a tensor that is not contiguous is lost",
            "0.19.0",
            "not hit",
            "the sums made here are contiguous, also backward: tests/checkpoint/test_gradients.py::test_two_processes",
        ),
        Fix(
            4565,
            "2026-05-02",
            "embeddings are scattered over one rank",
            "0.18.0",
            "refused",
            "tests/config/test_faults.py::test_each_rule_names_value_rule_and_remedy",
        ),
        Fix(
            3202,
            "2026-02-05",
            "a model with tied embeddings cannot be built on the meta device",
            "0.17.0",
            "not hit",
            (
                "conversions build it as for a CPU: "
                "tests/checkpoint/test_streamed.py::test_megatron_core_reads_what_was_written"
            ),
        ),
    ),
    "layers": (
        Fix(
            3504,
            "2026-02-24",
            "`fp32_residual_connection` rounds the residual stream to bf16 all the same",
            "0.17.0",
            "refused",
            _REFUSED,
        ),
        Fix(
            3389,
            "2026-03-04",
            "`cp_comm_type` as a list gives each layer the word of the next",
            "0.17.0",
            "refused",
            _REFUSED,
        ),
        Fix(
            3763,
            "2026-03-19",
            "Transformer Engine that is installed but cannot be loaded is taken for usable",
            "0.17.0",
            "not hit",
            "without a GPU it is not looked for (`model/layers.py`); with one, the import fails with its own message",
        ),
        Fix(
            5115,
            "2026-06-03",
            "`cross_entropy_fusion_impl: te` is unstable",
            "0.19.0",
            "not hit",
            "`native` is the default; from 0.19 on a warning in the log follows where `te` is passed",
        ),
        Fix(
            4497,
            "2026-08-19",
            "recomputation frees an input that a norm passes on",
            "main",
            "not hit",
            "norms that pass on the residual are not used",
        ),
    ),
    "experts": (
        Fix(
            5047,
            "2026-06-02",
            "balance loss and z-loss of a router count an n-th where n ranks share a sequence",
            "0.19.0",
            "mended",
            "tests/parallel/test_parity.py::test_a_row_of_the_matrix[experts, expert 2, context 2]",
        ),
        Fix(
            5798,
            "2026-07-17",
            "with `seq_aux_loss` the weight of the balance loss depends on the micro batch size",
            "0.19.0",
            "mended",
            "tests/parallel/test_parity.py::test_a_row_of_the_matrix[experts, sequence balance, 8 micro batches]",
        ),
        Fix(
            5696,
            "2026-07-09",
            "`seq_aux_loss` takes the documents of a micro batch for one sequence",
            "0.19.0",
            "refused",
            _REFUSED,
        ),
        Fix(
            5916,
            "2026-07-25",
            (
                "weights of grouped experts lack the mark of tensor parallelism with Transformer Engine from 2.13 "
                "on, and the gradient norm counts one rank's"
            ),
            "0.19.0",
            "mended",
            (
                "tests/parallel/test_parity.py::test_weights_of_experts_count_in_the_gradient_norm_on_every_rank_that_has_a_part"
            ),
        ),
        Fix(
            3199,
            "2026-07-16",
            "the reported z-loss of a router is summed over ranks where it should be averaged",
            "0.19.0",
            "not hit",
            "router losses are not reported",
        ),
        Fix(
            6114,
            "2026-08-20",
            "a padding mask does not fit the counts of `moe_router_enable_expert_bias`",
            "main",
            "not hit",
            "no token is padding: the order of sequences fills each (`mixture/order.py`)",
        ),
        Fix(
            2765,
            "2026-02-26",
            "a sigmoid of the router is computed in bf16 for the balance loss",
            "0.17.0",
            "not hit",
            "`moe_router_dtype` is fp32",
        ),
        Fix(
            3582,
            "2026-03-06",
            "the router's product does not know a newer Transformer Engine",
            "0.17.0",
            "not hit",
            "it falls back to torch's product",
        ),
        Fix(
            3101,
            "2026-02-04",
            "the `allgather` dispatcher gives a fused kernel a tensor for a number",
            "0.17.0",
            "not hit",
            "`alltoall` is the default, and `moe_permute_fusion` is off",
        ),
        Fix(
            5197,
            "2026-08-07",
            "full recomputation keeps the activations of experts longer than it needs",
            "main",
            "not hit",
            "memory alone; numbers are the same",
        ),
        Fix(
            5209,
            "2026-07-23",
            "gradients of experts go astray under `use_transformer_engine_op_fuser`",
            "0.19.0",
            "open",
            "off unless it is passed through; needs Transformer Engine, so it was not run: use 0.19 or later with it",
        ),
        Fix(
            5850,
            "2026-07-22",
            "biases of experts are scaled wrongly under `use_transformer_engine_op_fuser`",
            "0.19.0",
            "not hit",
            "a GPT-OSS, whose experts have biases, has no layers of Transformer Engine",
        ),
        Fix(5487, "2026-07-22", "one weight for all experts in fp8 has wrong numbers", "0.19.0", "refused", _REFUSED),
    ),
    "embeddings and attention": (
        Fix(
            5243,
            "2026-06-16",
            "rotary positions of packed documents are wrong where ranks share sequences",
            "0.19.0",
            "not hit",
            (
                "positions in documents are our own there (`model/attention.py`): "
                "tests/parallel/test_parity.py::test_a_row_of_the_matrix"
            ),
        ),
    ),
    "the rest": (
        Fix(
            5635,
            "2026-07-06",
            "documents kept apart by Megatron-LM's data loader fail with several sequences in a micro batch",
            "0.19.0",
            "not hit",
            "batches are our own (`data/loader.py`)",
        ),
        Fix(
            3306,
            "2026-02-09",
            "the number of a document overflows in NumPy",
            "0.17.0",
            "not hit",
            "readers of datasets are our own (`corpus/indexed.py`)",
        ),
        Fix(
            5500,
            "2026-07-07",
            "index files are read with pickles allowed",
            "0.19.0",
            "not hit",
            "there are no index files; arrays are read with `allow_pickle=False`",
        ),
    ),
}
"""By the part of Megatron-Core."""
