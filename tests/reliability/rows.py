"""The 67 checks of reliability and security: what is tried, which tests try it, what other systems do on the same.

A row's tests are the tests of this folder that carry its id in their name (`test_P1_...`) and those of other folders
that are named here. What other systems do was found once, at the commits in SYSTEMS: by running their code, or by
reading code, documentation, threads or the log. It says nothing about later versions or other inputs.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Row:
    """One check."""

    check: str
    """What is tried, and what is expected of it."""
    others: str
    """What other systems do on the same check; empty: not looked at."""
    tests: tuple[str, ...] = ()
    """Tests of other folders that try it: FILE::TEST, below tests/."""
    absent: str | None = None
    """Why it cannot be tried here."""


SYSTEMS = (
    ("Megatron-LM", "NVIDIA/Megatron-LM", "d98e8a64"),
    ("Megatron-Bridge", "NVIDIA-NeMo/Megatron-Bridge", "067f987d"),
    ("torchtitan", "pytorch/torchtitan", "b5bcd76c"),
    ("OLMo-core", "allenai/OLMo-core", "fa6c5014"),
    ("Streaming", "mosaicml/streaming", "89e7bb90"),
    ("Composer", "mosaicml/composer", "64051888"),
    ("safetensors", "huggingface/safetensors", "24b0b285"),
    ("DataTrove", "huggingface/datatrove", "a649de79"),
    ("GPT-NeoX", "EleutherAI/gpt-neox", "ea7aefd8"),
    ("nanotron", "huggingface/nanotron", "2411b022"),
    ("nvidia-resiliency-ext", "NVIDIA/nvidia-resiliency-ext", "d8686d9c"),
    ("PyTorch's distributed checkpoint (DCP)", "pytorch/pytorch", "2.13.0"),
    ("transformers", "huggingface/transformers", "5.23.0"),
    ("TensorBoard", "tensorflow/tensorboard", "2.21.0"),
)
"""Name, repository, commit or release that was looked at."""

GROUPS = {
    "P": "Preparation",
    "D": "Datasets, blends, validation",
    "C": "Checkpoints and conversions",
    "R": "Resume",
    "F": "Faults while a run goes on",
    "S": "Security",
}

_PREPARE = "preparation/test_prepare.py"
_KILLS = "preparation/test_interruptions.py"
_LINES = "preparation/test_reliability.py"
_FLIPS = "corpus/test_bit_flips.py"
_NINE = "mixture/test_nine_properties.py"
_RESUME = "train/test_resume.py"
_NUMERICS = "train/test_numerics.py"
_INTEGRITY = "checkpoint/test_integrity.py"
_WATCHDOG = "train/test_watchdog.py"
_ALTERED = "train/test_run_folder_altered.py"
_VETTING = "checkpoint/test_vetting.py"
_HF = "checkpoint/test_hf_folder.py"
_WEIGHTS = "checkpoint/test_hf_weights.py"
_EXPORT = "checkpoint/test_hf_export.py"

ROWS = {
    "P1": Row(
        "`prepare` killed at any moment: nothing opens until it is whole, and the next call gives the bytes of an"
        " undisturbed one.",
        "Megatron-LM: the half-written `.bin` stays (run). DataTrove: whole tasks are kept (documented).",
        (
            f"{_KILLS}::test_any_kill_loses_no_more_than_a_piece",
            f"{_KILLS}::test_standard_input_goes_on_where_it_was_killed",
        ),
    ),
    "P2": Row(
        "The same where the name already has a dataset: the old or the new one, never a mixture.",
        "Megatron-LM: the older index opens over new tokens, 200 of 200 documents wrong (run).",
        (
            f"{_KILLS}::test_a_kill_over_an_older_dataset_leaves_the_old_or_the_new_one",
            f"{_FLIPS}::test_an_older_index_beside_new_tokens_is_refused",
        ),
    ),
    "P3": Row(
        "A disk with 10 to 95 % of the room that is needed: one message with needed and free bytes, nothing opens.",
        "Megatron-LM: the writer raises and part of a `.bin` stays (run).",
        (
            "commands/test_dispatch.py::test_a_full_disk_is_not_blamed_on_the_input",
            "commands/test_dispatch.py::test_what_a_full_disk_stops_leaves_what_was_there",
        ),
    ),
    "P4": Row(
        "Broken, cut, empty or foreign lines among good ones: each is listed with its place and costs itself alone.",
        "Megatron-LM: 7 of 7 kinds hang (run). DataTrove: skips with a warning (code).",
        (
            f"{_LINES}::test_a_bad_line_costs_itself_alone",
            f"{_LINES}::test_a_last_line_that_is_cut_short_costs_itself_alone",
            f"{_LINES}::test_blank_lines_are_no_documents_and_nan_in_metadata_is_read",
            f"{_LINES}::test_the_reason_that_most_lines_share_is_told",
            f"{_PREPARE}::test_rejected_lines_are_listed_and_the_rest_is_prepared",
        ),
    ),
    "P5": Row(
        "Invalid UTF-8, byte order marks, CRLF, NUL, half characters, U+2028: no good document of the file is lost.",
        "Megatron-LM: hangs (run). DataTrove: one such error drops the rest of the file (code).",
        (
            "preparation/test_documents.py::test_text_that_looks_odd_is_kept_as_it_is",
            "preparation/test_documents.py::test_a_bad_line_is_rejected_with_its_place_and_the_rest_is_read",
            "preparation/test_table.py::test_a_cell_that_is_no_text_costs_itself_alone",
        ),
    ),
    "P6": Row(
        "Lines beyond every limit and streams that expand a thousandfold: never held in memory.",
        "",
        (
            "preparation/test_pieces.py::test_a_stream_that_expands_a_thousandfold_is_never_held",
            "preparation/test_documents.py::test_a_line_over_the_limit_is_skipped_and_never_held",
        ),
    ),
    "P7": Row(
        "Empty corpora and empty parts: refused or counted, never waited for.",
        "Megatron-LM: a split without tokens is an endless loop (run).",
        (
            f"{_PREPARE}::test_a_part_without_documents_is_refused",
            "corpus/test_stream.py::test_an_empty_stream_counts_nothing_and_cannot_be_read",
            "mixture/test_plan.py::test_a_source_without_tokens_is_refused_only_if_it_is_to_be_read",
            "planning/test_audit.py::test_a_split_without_a_document_is_refused",
        ),
    ),
    "P8": Row(
        "A worker is killed, raises or stands still: the command ends and says so, and no process is left.",
        "Megatron-LM: a killed worker is waited for (run, 100 s).",
        (
            f"{_KILLS}::test_a_killed_worker_ends_the_run_with_an_error_and_the_next_one_goes_on",
            "preparation/test_workers.py::test_an_error_of_a_worker_is_raised_as_it_is",
            "preparation/test_workers.py::test_a_killed_worker_ends_everything_at_once",
        ),
    ),
    "P9": Row(
        "Vocabularies around 65,536 and ids at and beyond their ends: exact round trips, no id wraps.",
        "Megatron-LM: ids wrap (70,000 becomes 4,464), and some files are read in the wrong width (run).",
        (
            f"{_LINES}::test_vocabularies_near_65536_come_back_exactly",
            f"{_LINES}::test_a_library_that_gives_ids_outside_its_vocabulary_is_refused",
            "corpus/test_indexed.py::test_ids_of_every_vocabulary_round_trip_and_others_are_refused",
            "corpus/test_indexed.py::test_an_id_never_wraps_in_a_small_dtype",
        ),
    ),
    "P10": Row(
        "EOD once a document whatever the tokenizer adds; control tokens written in text stay text.",
        "Megatron-LM: `<eos>` in a text becomes the control token (run).",
        (
            f"{_PREPARE}::test_control_tokens_in_text_are_not_injected",
            f"{_PREPARE}::test_where_a_model_would_inject_them_the_document_is_rejected",
            f"{_PREPARE}::test_bos_opens_each_document_when_asked",
        ),
    ),
    "P11": Row(
        "Any number of workers and shards gives the same bytes.",
        "Megatron-LM: the same order by construction, with one partition (code).",
        (f"{_KILLS}::test_workers_and_shards_and_cuts_make_no_difference",),
    ),
    "P12": Row(
        "A call with another input, tokenizer or setting beside pieces of an earlier one: never mixed.",
        "Megatron-LM: takes partition files by their name (code).",
        (
            "preparation/test_workspace.py::test_pieces_of_another_job_are_not_taken",
            "preparation/test_workspace.py::test_a_second_call_into_a_prefix_is_refused_and_the_first_keeps_its_corpus",
            f"{_KILLS}::test_a_shard_of_another_call_is_refused",
        ),
    ),
    "P13": Row(
        "Offsets beyond 2^31 bytes are exact; a sequence longer than 2^31 - 1 tokens is refused.",
        "Megatron-LM: 64-bit offsets since a repair (code).",
    ),
    "D1": Row(
        "Every single bit of an index turned over, and random runs of bytes: none is read in silence.",
        "Megatron-LM: 16 % of turned bits are read as other tokens with mmap, 34 % without (run).",
        (
            f"{_FLIPS}::test_every_bit_of_an_index_is_proved_at_every_load",
            f"{_FLIPS}::test_random_runs_of_bytes",
            f"{_FLIPS}::test_an_index_that_nothing_describes_never_gives_other_tokens",
            "corpus/test_indexed.py::test_every_flipped_bit_of_an_index_is_refused",
        ),
    ),
    "D2": Row(
        "Turned bits of tokens: `inspect --verify` finds all.",
        "Megatron-LM: nothing finds them (run). Streaming: hashes, off by default (code).",
        (f"{_FLIPS}::test_every_bit_of_the_tokens_is_proved_by_verify",),
    ),
    "D3": Row(
        "A `.bin` or `.idx` cut at any length, emptied or longer: refused when it is opened.",
        "Megatron-LM: opens; without mmap 73 of 200 reads are silently wrong (run).",
        (
            f"{_FLIPS}::test_files_cut_short_or_grown_are_refused",
            "corpus/test_indexed.py::test_an_index_cut_anywhere_is_refused",
            "corpus/test_indexed.py::test_data_of_another_length_are_refused",
        ),
    ),
    "D4": Row(
        "Tokens of another dataset of the same size: refused when a run starts and by `inspect --verify` (`plan` opens"
        " no `.bin` of what `prepare` wrote). Another dtype code: refused.",
        "Megatron-LM: accepted (code).",
        (
            f"{_FLIPS}::test_the_tokens_of_another_dataset_of_the_same_size_are_refused",
            "train/test_same_data.py::test_other_tokens_under_a_manifest_are_refused_at_the_start",
            "corpus/test_indexed.py::test_a_dtype_of_floats_and_a_later_version_are_refused",
        ),
    ),
    "D5": Row(
        "Killed, torn or foreign index caches: there are no index caches; opening a blend writes nothing.",
        "Megatron-LM: a torn cache fails every later start (run). OLMo-core: temporary name, then replaced (code).",
        (
            "planning/test_plan.py::test_a_plan_needs_no_run_folder_and_opens_no_bin",
            f"{_NINE}::test_index_free_a_thousand_sources_of_ten_billion_sequences_take_megabytes",
            "corpus/test_manifest.py::test_a_foreign_pair_whose_manifest_cannot_be_written_is_usable",
        ),
    ),
    "D6": Row(
        "A dataset replaced under its name: refused where a run, a score or a selection was made of the old one, also"
        " where its manifest came or went; the same dataset is known again.",
        "Megatron-LM: the old index is used, 237 of 418 samples differ (run). OLMo-core: sees name and size (code).",
        (
            "corpus/test_manifest.py::test_a_replaced_dataset_is_refused",
            "corpus/test_same_data.py::test_a_score_and_a_selection_are_known_again_where_the_manifest_came_or_went",
            "train/test_same_data.py::test_a_manifest_that_comes_or_goes_changes_nothing",
            "train/test_same_data.py::test_what_became_of_the_data_is_told",
            "corpus/test_manifest.py::test_other_data_of_the_same_size_are_found_by_verify",
            "corpus/test_scores.py::test_the_score_of_other_content_is_refused",
            f"{_NINE}::test_guarded_what_was_read_cannot_change_unseen",
        ),
    ),
    "D7": Row(
        "Eight processes open one pair made elsewhere at once, of which each describes it: all read the same.",
        "Megatron-LM: a second writer of a cache kills readers with SIGBUS (run, its primitive alone)."
        " OLMo-core: repaired (thread).",
    ),
    "D8": Row(
        "A file system that shows files late or fails once: one clear error and nothing lost, or the right content.",
        "Megatron-LM: missing files are taken for absent ones (thread). Megatron-Bridge: partly repaired (log).",
    ),
    "D9": Row(
        "Pickles in `.npy` files, raw pickles, arrays of absurd sizes where columns are read: refused, never executed.",
        "Megatron-LM: refused (run). GPT-NeoX, nanotron: unpickled (code).",
    ),
    "D10": Row(
        "Weights that are 0, negative, not finite, too many or too few, and sources given twice: refused by name.",
        "Megatron-LM: assertions without words; a prefix given twice is accepted (run). torchtitan: refused (code).",
        (
            "mixture/test_weight_tree.py::test_weights_that_make_no_tree",
            "planning/test_faults.py::test_weights_that_make_no_shares_are_told_once",
            "config/test_faults.py::test_each_rule_names_value_rule_and_remedy",
            "corpus/test_stream.py::test_paths_that_share_documents_are_refused",
            "commands/test_audit.py::test_what_is_no_blend",
        ),
    ),
    "D11": Row(
        "Shares at every prefix of a run and after a resume: within two sequences of what is due.",
        "Megatron-LM: each sample goes to the source that is furthest behind (code).",
        (
            f"{_NINE}::test_exact_every_prefix_of_a_phase_is_within_two_of_the_due_shares",
            f"{_NINE}::test_changeable_an_appended_phase_goes_on_where_every_source_stood",
            "mixture/test_phases.py::test_limits_are_met_exactly_and_every_phase_keeps_the_replay_ratio",
        ),
    ),
    "D12": Row(
        "Small validation sets, evaluations at every step and under every layout: the same sequences, the same loss.",
        "Megatron-LM: other samples at each evaluation; some sets run out (code). torchtitan: repaired (thread).",
        (
            "evaluate/test_validate.py::test_a_set_is_the_same_whatever_the_micro_batch",
            "evaluate/test_validate.py::test_evaluations_leave_training_as_it_was",
            "planning/test_faults.py::test_validation_sets_without_a_sequence",
            "planning/test_plan.py::test_a_budget_that_a_validation_set_does_not_hold_and_a_high_rate_are_named",
            "train/test_megatron_lm.py::test_each_evaluation_reads_the_same_sequences",
        ),
    ),
    "D13": Row(
        "Counts of sequences and tokens around 2^24 and beyond are exact.",
        "Megatron-LM: one sequence short at 100,663,299 tokens (run).",
    ),
    "C1": Row(
        "A run killed while it saves: it goes on from the newest whole checkpoint; no half-written one is loaded.",
        "DCP: 365 of 365 visible ones load (run). Megatron-LM: one pointer, written in place (code).",
        (
            "train/test_many_ends.py::test_kill_9_at_fifteen_random_times",
            "train/test_kill.py::test_a_killed_run_ends_like_one_that_was_not",
            "checkpoint/test_writer.py::test_a_killed_writer_ends_the_run_with_an_error",
            f"{_INTEGRITY}::test_a_folder_without_marker_is_no_checkpoint",
        ),
    ),
    "C2": Row(
        "Damaged or strange names among the checkpoints, and none that is whole: never a new beginning in silence.",
        "Megatron-LM: exit code 0 (run), then random weights (code). torchtitan, OLMo-core: search the folders (code).",
        (
            f"{_ALTERED}::test_a_run_that_has_lost_its_checkpoints_does_not_begin_again",
            f"{_ALTERED}::test_a_run_that_never_saved_begins_again",
            f"{_ALTERED}::test_only_what_the_run_made_is_resumed_from_or_removed",
            f"{_ALTERED}::test_a_link_under_the_name_of_a_later_checkpoint_is_refused",
        ),
    ),
    "C3": Row(
        "The disk is full at each file of a save: the checkpoint before stays, the run says so, a restart goes on.",
        "DCP: the shard's case passes (run).",
        (
            "checkpoint/test_writer.py::test_a_full_disk_ends_the_run_with_an_error",
            "commands/test_dispatch.py::test_a_run_whose_disk_is_full_says_so_in_its_status",
        ),
    ),
    "C4": Row(
        "Old checkpoints go only when a newer one is whole: at every moment one can be loaded.",
        "torchtitan: keeps two or more (code). Megatron-Bridge: repaired (log).",
        (
            "checkpoint/test_retention.py::test_prune_removes_surplus_and_what_a_cut_short_save_left",
            "checkpoint/test_retention.py::test_the_last_ones_and_round_distances_stay",
        ),
    ),
    "C5": Row(
        "Files of a checkpoint cut, missing, swapped or of another step: refused by name.",
        "DCP: cut files raise (run).",
        (
            f"{_INTEGRITY}::test_damage_to_any_file_is_refused_on_all_ranks",
            f"{_ALTERED}::test_a_checkpoint_is_compared_with_its_hashes_before_it_is_read",
            "checkpoint/test_hf_convert.py::test_a_checkpoint_that_was_cut_short_or_changed_is_refused",
        ),
    ),
    "C6": Row(
        "Turned bits in any file of a checkpoint, with default settings: found before a tensor is used.",
        "Megatron-LM: with `--verify-integrity` alone (run). DCP, torch.save, safetensors: 99 % or more silent (run).",
        (f"{_INTEGRITY}::test_the_marker_names_every_file_and_both_ranks_find_them_intact",),
    ),
    "C7": Row(
        "A manifest of hashes that is empty, torn, names other files or leaves the folder: refused on all ranks.",
        "Megatron-LM: 4 of 4 that were tried are accepted or wait for a timeout (run).",
        (
            f"{_INTEGRITY}::test_a_broken_marker_is_refused",
            f"{_ALTERED}::test_the_marker_names_exactly_the_files_of_the_checkpoint",
        ),
    ),
    "C8": Row(
        "Programs in pickles of a checkpoint: refused, never executed, no second way in.",
        "Megatron-LM: `.metadata` is executed (run). torchtitan, Megatron-Bridge: likewise (code). OLMo-core:"
        " everywhere (code). Composer: refused but for sharded ones (code).",
        (
            f"{_VETTING}::test_a_program_in_the_table_of_contents_is_refused_and_does_not_run",
            f"{_VETTING}::test_a_program_among_the_values_is_refused_and_does_not_run",
            f"{_VETTING}::test_a_torn_table_is_refused",
            "checkpoint/test_megatron_lm.py::test_pickles_of_the_older_format_are_refused",
            f"{_HF}::test_pickles_are_refused_with_the_remedy",
        ),
    ),
    "C9": Row(
        "Changed safetensors headers: refused or the same tensors; names, sizes and dtypes are the config's.",
        "safetensors: 32 of 3,000 turned bits load under another name or dtype (run).",
        (
            "checkpoint/test_hf_fuzz.py::test_a_header_of_any_content",
            f"{_HF}::test_a_changed_header_is_refused_or_harmless",
        ),
    ),
    "C10": Row(
        "An index that names files outside of its folder, by path or by link: refused.",
        "transformers: read (run). Megatron-Bridge: refused, links are not looked at (code).",
        (
            f"{_HF}::test_an_index_that_leaves_the_folder_is_refused",
            "checkpoint/test_hf_fuzz.py::test_an_index_of_any_content",
            f"{_VETTING}::test_a_value_outside_the_folder_is_refused",
        ),
    ),
    "C11": Row(
        "Folders with custom code, kernels from elsewhere or programs in templates: nothing runs, nothing is fetched.",
        "transformers: repaired in 5.3.0 (second hand). Megatron-Bridge: some recipes allow it (code).",
    ),
    "C12": Row(
        "Tensors that are missing, surplus, renamed, of another size or dtype: refused with the list.",
        "Megatron-LM: unexpected ones are accepted by default (code).",
        (
            f"{_WEIGHTS}::test_tensors_that_do_not_fit_are_named",
            "checkpoint/test_megatron_lm.py::test_what_does_not_fit_is_told_in_full",
        ),
    ),
    "C13": Row(
        "Hugging Face to Megatron-Core and back, under several layouts: the same bits.",
        "torchtitan, Megatron-Bridge: tied or padded weights were exported wrongly once (log).",
        (
            "checkpoint/test_hf_convert.py::test_a_folder_to_a_checkpoint_and_back_changes_no_bit",
            "checkpoint/test_hf_convert.py::test_a_checkpoint_of_two_ranks_is_read_by_one",
            f"{_WEIGHTS}::test_one_process",
            f"{_WEIGHTS}::test_two_processes",
            f"{_WEIGHTS}::test_four_processes",
            f"{_EXPORT}::test_two_ranks_write_the_bytes_of_one",
        ),
    ),
    "C14": Row(
        "An export killed at any moment or on a full disk: the folder is absent or whole.",
        "safetensors: one file at a time, temporary name, then renamed (code); nothing for a folder.",
        (
            "checkpoint/test_streamed.py::test_a_number_that_is_none_is_named_and_nothing_is_left",
            f"{_EXPORT}::test_the_error_of_one_rank_ends_all_and_leaves_no_folder",
        ),
    ),
    "C15": Row(
        "The model that is loaded gives the numbers of the model that was saved.",
        "GPT-NeoX: stored logits are compared (code).",
    ),
    "R1": Row(
        "A run in two parts against one in a piece, same layout: every record and weight bit-equal.",
        "torchtitan: bit-identical by a script (code). Megatron-LM: losses of 5 decimals (code).",
        (
            f"{_RESUME}::test_two_processes_resume_exactly",
            f"{_RESUME}::test_one_process_resumes_exactly",
            f"{_RESUME}::test_bf16_resumes_exactly",
        ),
    ),
    "R2": Row(
        "Other layouts from one checkpoint: the same sequences at each step, losses equal to rounding.",
        "Megatron-LM: promised (documented). torchtitan: another data-parallel size is refused (code)."
        " Streaming: promised (documented).",
        (
            f"{_RESUME}::test_another_layout_goes_on_with_the_same_data_and_losses",
            f"{_NINE}::test_spread_and_accounted_a_run_that_changes_its_layout_reads_what_was_due",
        ),
    ),
    "R3": Row(
        "Killed and started again until the end: each planned sequence once, in order.",
        "Repeated or skipped samples are reported of Megatron-Bridge, transformers and others (threads).",
        ("train/test_many_ends.py::test_kill_9_at_fifteen_random_times",),
    ),
    "R4": Row(
        "Sources, tokenizer, sequence length, blend or records changed at a resume: refused, with what differs.",
        "Megatron-LM: silent (code). OLMo-core: refused (code).",
        (
            f"{_RESUME}::test_a_resume_that_would_see_other_data_is_refused",
            f"{_RESUME}::test_a_run_goes_on_with_an_appended_phase",
            f"{_ALTERED}::test_a_resume_knows_the_records_of_its_checkpoint",
            "train/test_changed_settings.py::test_what_losses_mean_and_how_a_run_began_is_not_changed",
        ),
    ),
    "R5": Row(
        "A resume of a resume of a resume, also at the first and the last step: the run itself.",
        "torchtitan: repaired (log).",
        (f"{_RESUME}::test_a_resume_of_a_resume_is_the_run",),
    ),
    "R6": Row(
        "Another global batch at a resume: refused, or the position in sequences is kept and the schedule told.",
        "Megatron-LM, OLMo-core: the count of samples is kept, nothing is refused (code).",
        (
            "train/test_batch_ramp.py::test_a_resume_with_other_batches_is_refused",
            "train/test_batch_ramp.py::test_a_larger_global_batch_follows_by_a_ramp",
        ),
    ),
    "R7": Row(
        "Evaluating, logging and profiling or not: training is bit-equal.",
        "Megatron-Bridge, OLMo-core: repaired (log, documented).",
        (
            "evaluate/test_validate.py::test_evaluations_leave_training_as_it_was",
            "train/test_seen.py::test_training_is_the_same_whatever_is_watched",
            "train/test_harness.py::test_training_is_as_without_them",
        ),
    ),
    "R8": Row(
        "Rates at each step over a resume are those of the schedule; a changed horizon is told or refused.",
        "Megatron-LM: repaired (log).",
        (
            f"{_RESUME}::test_a_schedule_goes_on_over_a_resume",
            f"{_RESUME}::test_a_longer_run_is_told_that_its_rate_jumps",
            "config/test_schedule.py::test_rates_stay_between_their_ends_and_reach_the_last_exactly",
        ),
    ),
    "F1": Row(
        "SIGTERM to the command or to one rank at any moment: a checkpoint, exit code 75, and the run goes on exactly.",
        "Megatron-LM: by a flag (code). Megatron-Bridge: repaired (log). OLMo-core: up to 25 steps late (code)."
        " torchtitan: none (code).",
        (
            "train/test_stop.py::test_a_signal_to_the_command_or_all_its_processes_saves_and_the_same_command_goes_on",
            "train/test_stop.py::test_a_signal_before_training_has_begun_is_not_lost",
            "train/test_stop.py::test_a_signal_to_one_rank_stops_all_after_the_same_step",
            "train/test_many_ends.py::test_sigterm_at_ten_random_times",
        ),
    ),
    "F2": Row(
        "Two SIGTERMs, and SIGTERM followed by SIGKILL: C1 holds.",
        "",
        ("train/test_ctrl_c.py::test_a_second_ctrl_c_ends_at_once",),
    ),
    "F3": Row(
        "One rank killed under data, tensor and pipeline parallelism: the job ends, names the rank, leaves no process.",
        "torchrun with gloo: ends in 0.9 s, names none (run).",
        (
            "train/test_dead_rank.py::test_a_second_command_is_refused_and_a_killed_rank_ends_the_job_and_is_named",
            "train/test_dead_rank.py::test_nothing_outlives_a_killed_command",
        ),
    ),
    "F4": Row(
        "A rank that stands still: the job ends within twice the limit and names the rank and what it was doing.",
        "torchrun with gloo: hangs after 90 s (run). nvidia-resiliency-ext: ends it (documented).",
        (
            f"{_WATCHDOG}::test_a_stopped_rank_ends_the_run_and_is_named_with_its_place",
            f"{_WATCHDOG}::test_a_rank_that_waits_for_its_data_is_named_and_all_stacks_are_in_the_log",
            f"{_WATCHDOG}::test_a_process_alone_that_hangs_is_ended",
            f"{_WATCHDOG}::test_a_signal_ends_a_run_that_hangs_before_its_limit",
            f"{_WATCHDOG}::test_a_process_that_was_stopped_itself_goes_on",
        ),
    ),
    "F5": Row(
        "NaN and infinity in loss, gradient or weight, on one rank, early and late: all stop before the update.",
        "torchtitan: stops (code). Megatron-LM: the first iteration is left out in one mode (code)."
        " OLMo-core: the update is made (run, optimizer alone).",
        (
            f"{_NUMERICS}::test_nan_on_one_rank_stops_all_before_the_first_update",
            f"{_NUMERICS}::test_nan_in_what_the_norm_leaves_out_is_seen",
            f"{_NUMERICS}::test_nan_later_stops_all_before_the_update",
            f"{_NUMERICS}::test_a_run_stopped_later_goes_on_from_its_last_checkpoint",
            f"{_NUMERICS}::test_skip_leaves_the_update_out_and_goes_on",
        ),
    ),
    "F6": Row(
        "A loss that jumps: seen at its step, dealt with as set, and no storm of skipped steps.",
        "OLMo-core: 129 steps are skipped after one NaN (run, optimizer alone).",
        (
            "train/test_leaving_out.py::test_a_spike_is_left_out_before_its_update_and_a_resume_judges_alike",
            "train/test_leaving_out.py::test_rewind_goes_back_and_leaves_the_sequences_out",
            f"{_NUMERICS}::test_skipping_does_not_go_on_for_ever",
        ),
    ),
    "F7": Row(
        "Tokens that become unreadable or wrong while the run goes on: an error that names the file and the place.",
        "Megatron-LM: 70 s of waiting at each bad read (code).",
        (
            "corpus/test_foreign_ids.py::test_a_read_of_a_foreign_id_names_dataset_document_and_offset",
            "corpus/test_foreign_ids.py::test_a_file_of_other_content_is_found_at_the_start",
        ),
    ),
    "F8": Row(
        "An error on one rank alone, in any part of the program: every rank ends and the status tells why.",
        "Megatron-LM: the other ranks wait for the timeout of the process group (run).",
        ("train/test_first_failure.py::test_the_status_tells_why_the_first_rank_failed",),
    ),
    "F9": Row(
        "Memory that runs out in a save or a preparation: exit code not 0, what was there before is whole.",
        "Growth and ends for lack of memory in saves are reported of many (threads).",
    ),
    "F10": Row(
        "Two starts in one run folder, and locks that the dead left: one writer.",
        "",
        (
            "runs/test_lock.py::test_a_second_job_is_refused_until_the_first_is_gone",
            "train/test_ctrl_c.py::test_of_two_starts_at_once_one_trains_and_ctrl_c_saves_it",
            "train/test_dead_rank.py::test_a_second_command_is_refused_and_a_killed_rank_ends_the_job_and_is_named",
        ),
    ),
    "S1": Row(
        "Hostile YAML: tags, bombs of aliases, deep nesting, powers of powers, pipes, unknown keys: refused at once.",
        "Megatron-LM, Megatron-Bridge: partly refused (code). nanotron: a loader that makes objects (code).",
        (
            "config/test_load.py::test_a_file_that_is_not_a_configuration",
            "config/test_load.py::test_an_unknown_key_names_the_nearest",
            "commands/test_dispatch.py::test_a_config_of_absurd_sizes_is_one_message",
        ),
    ),
    "S2": Row(
        "Markup, formulas and control characters in names, data and metrics: inert in pages, logs and tables.",
        "TensorBoard: scripts are taken out, remote images are loaded (run).",
        (
            "report/test_page.py::test_names_and_config_from_data_are_only_text",
            "report/test_page.py::test_the_page_loads_nothing_and_runs_its_own_script_alone",
            "commands/test_prepare.py::test_documents_cannot_steer_the_terminal",
        ),
    ),
    "S3": Row(
        "Sockets of every command: none to anywhere else; ranks on the loopback. torch's store listens everywhere.",
        "Megatron-LM: a listener on all interfaces where stragglers are logged (code).",
    ),
    "S4": Row(
        "Folders and checkpoints that others own or may write to, and links in their place: refused or warned of.",
        "",
        (
            "runs/test_permissions.py::test_a_link_in_the_place_of_a_file_is_refused_and_what_it_names_stays",
            "runs/test_permissions.py::test_a_new_run_folder_is_not_for_everybody_to_write",
            "runs/test_permissions.py::test_folders_that_others_may_write_to_are_named",
            "runs/test_permissions.py::test_the_folder_of_another_user_is_refused",
        ),
    ),
    "S5": Row(
        "Secrets in the environment: in no log, record, checkpoint or page.",
        "DataTrove: kept out (code). Megatron-LM: repaired in its CI (log).",
    ),
    "S6": Row(
        "Archives that unpack elsewhere or expand: no archive is unpacked, compressed streams are bounded.",
        "Streaming: file names of an index are not checked (code).",
        (
            "preparation/test_pieces.py::test_a_stream_that_expands_a_thousandfold_is_never_held",
            "preparation/test_inputs.py::test_every_wrong_input_is_listed_at_once",
        ),
    ),
    "S7": Row(
        "Releases of libraries below the floors: refused at the start.",
        "",
        (
            "runs/test_floors.py::test_an_older_library_is_refused",
            "runs/test_floors.py::test_a_command_does_not_start_with_one",
        ),
    ),
    "S8": Row(
        "No unpickling, evaluating or shell in the package: searched for in the sources.",
        "Megatron-LM: three places, and one behind a restricted reader (code).",
        ("docs/test_pages.py::test_no_unpickling_no_execution_of_what_is_read",),
    ),
}
