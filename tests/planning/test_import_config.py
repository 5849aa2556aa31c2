"""Configurations of other programs become the runs that they mean, and no key is lost without a word."""

import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from transformers import Seq2SeqTrainingArguments

from megatron_cpt.config.checks import config_faults
from megatron_cpt.config.errors import BadInput
from megatron_cpt.config.load import config_from_dict
from megatron_cpt.config.schema import RunConfig
from megatron_cpt.config.units import Duration
from megatron_cpt.families.family import ModelShape
from megatron_cpt.planning.config_file import PROGRAMS, config_path, read_config_file, recognise
from megatron_cpt.planning.config_keys import key_of, table
from megatron_cpt.planning.import_config import import_config
from megatron_cpt.planning.megatron_lm_arguments import by_flag
from megatron_cpt.planning.outcomes import Imported, ImportOptions
from megatron_cpt.planning.run_file import run_text
from tests.config.test_keys import NAMED, exists
from tests.planning.other_configs import AXOLOTL, BRIDGE, LLAMA_FACTORY, NEMO, NEMO_2, OLMO_CORE, TRAINER
from tests.planning.small_run import write_dataset, write_model

TEXTS = {
    "llama-factory": LLAMA_FACTORY,
    "hf-trainer": json.dumps(TRAINER),
    "axolotl": AXOLOTL,
    "megatron-bridge": BRIDGE,
    "nemo": NEMO,
    "olmo-core": json.dumps(OLMO_CORE),
}
NEEDED: dict[str, dict[str, Any]] = {
    "llama-factory": {"ranks": 8, "assumed": {"medicine": 2_000_000, "general": 10_000_000}},
    "hf-trainer": {"ranks": 4, "model": "base"},
    "axolotl": {"ranks": 4, "assumed": {"books": 1_000_000, "wiki": 2_000_000}},
    "megatron-bridge": {"ranks": 8, "model": "base"},
    "nemo": {"model": "base"},
    "olmo-core": {"model": "base"},
}
BOMB = "a: &a {x: 1, y: 2}\n" + "".join(
    f"{name}: &{name} {{p: *{before}, q: *{before}, r: *{before}}}\n"
    for before, name in zip("abcdefghijkl", "bcdefghijklm", strict=True)
)
CHANGES = {"hf-trainer": ["block_size=64", "dataset_name=medicine"]}


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    write_model(tmp_path / "base")
    return tmp_path


def imported(text: str, *changes: str, program: str | None = None, **options: Any) -> tuple[RunConfig, Imported]:
    """The run that a configuration becomes, read back from the text of its file, and what became of each key."""
    path = Path("config.yaml")
    path.write_text(text)
    _, found, _ = import_config(path, changes, ImportOptions(**options), program)
    written = run_text(["head"], found.entries)
    assert max(len(line) for line in written.splitlines()) <= 120
    return config_from_dict(yaml.safe_load(written)), found


def by(program: str, *changes: str, **options: Any) -> tuple[RunConfig, Imported]:
    """The configuration of a program with what it needs."""
    return imported(TEXTS[program], *CHANGES.get(program, []), *changes, **NEEDED[program] | options)


def result_of(found: Imported, key: str) -> tuple[str, str]:
    """What became of a key, and the words."""
    [outcome] = [one for one in found.outcomes if one.text.startswith(f"{key}: ")]
    return outcome.result, outcome.words


def refused(found: Imported) -> set[str]:
    return {one.text.split(": ")[0] for one in found.outcomes if one.result in ("refused", "unknown")}


@pytest.mark.parametrize("program", PROGRAMS)
def test_a_configuration_is_recognised_and_every_key_is_told_of_once(program: str) -> None:
    config, found = by(program)
    assert recognise(yaml.safe_load(TEXTS[program])) == program
    assert config_faults(config, NEEDED[program].get("ranks", 16)) == []
    told = [one.text for one in found.outcomes]
    assert len(told) == len(set(told))
    values = read_config_file(Path("config.yaml")).values
    classes = {key for key in values if key.rpartition(".")[2] in ("_target_", "_call_", "_CLASS_")}
    names = {text.split(": ")[0] for text in told}
    assert set(values) - classes <= names


def test_llama_factory() -> None:
    config, found = by("llama-factory")
    assert (config.training.global_batch_size, config.training.micro_batch_size) == (2 * 8 * 8, 2)
    # The run ends when medicine, 0.7 of the examples, was read twice.
    assert config.total_steps == int(2 * 2_000_000 / 0.7) // (128 * 64)
    assert {name: one.weight for name, one in config.data.sources.items()} == {"medicine": 0.7, "general": 0.3}
    schedule = config.schedule
    assert (schedule.kind, schedule.peak_lr, schedule.final_lr) == ("cosine", 1e-5, 1e-6)
    assert schedule.warmup == Duration(-(-config.total_steps * 3 // 100), "steps")
    optimizer = config.optimizer
    assert (optimizer.weight_decay, optimizer.beta2, optimizer.no_weight_decay) == (0.1, 0.95, ["norms_and_biases"])
    assert config.validation.sets["medicine"].paths == ["data/medicine.validation"]
    assert config.validation.eval_interval.every == Duration(-(-config.total_steps // 10), "steps")
    assert config.validation.eval_interval.log_spaced == "8 per decade to 1000 steps"  # where the gap is
    assert (config.checkpoint.keep_last, config.run.wandb_project) == (3, "huggingface")
    assert (config.run.folder, config.training.recompute) == ("saves/llama/pt-cpt", "full")
    assert config.parallel.distributed_optimizer
    assert refused(found) == {"trust_remote_code", "deepspeed"}  # its JSON file is not there
    assert "prepare FILES --tokenizer base --output data/medicine" in result_of(found, "dataset")[1]
    assert "--holdout 0.5%" in result_of(found, "val_size")[1]


def test_llama_factory_names_the_file_of_a_dataset_that_its_list_has() -> None:
    Path("data").mkdir()
    Path("data/dataset_info.json").write_text(json.dumps({"medicine": {"file_name": "medicine.jsonl"}}))
    _, found = by("llama-factory")
    assert "prepare data/medicine.jsonl --tokenizer" in result_of(found, "dataset")[1]


@pytest.mark.parametrize(
    ("mix", "probabilities", "steps", "settings"),
    [
        ("concat", None, 3_000_000 * 2 // 8192, {"epochs": 2.0}),
        ("interleave_over", "0.5,0.5", 4_000_000 * 2 // 8192, {"weight": 0.5}),
        ("interleave_once", "0.5,0.5", 3_000_000 * 2 // 8192, {"weight": 0.5, "max_epochs": 2.0}),
    ],
)
def test_lengths_of_mixed_datasets(mix: str, probabilities: str | None, steps: int, settings: dict[str, float]) -> None:
    changes = [f"mix_strategy={mix}", f"interleave_probs={probabilities or 'null'}"]
    config, _ = by("llama-factory", *changes, assumed={"medicine": 1_000_000, "general": 2_000_000})
    assert config.total_steps == steps
    for source in config.data.sources.values():
        assert {name: getattr(source, name) for name in settings} == settings
    assert config_faults(config, 8) == []
    assert (config.data.when_exhausted == "redistribute") is (mix == "interleave_once")


def test_datasets_that_are_there_give_their_tokens() -> None:
    for name, tokens in (("medicine", 40_000), ("general", 80_000)):
        Path("data").mkdir(exist_ok=True)
        write_dataset(Path("data", name), tokens, Path("base"))
    config, found = by("llama-factory", "mix_strategy=concat", "interleave_probs=null", assumed={})
    assert config.total_steps == 240_000 // 8192
    assert "prepare" not in result_of(found, "dataset")[1]


def test_replay_in_llama_factory() -> None:
    config, _ = by("llama-factory", replay=["general"])
    assert config.data.sources["general"].role == "replay"
    assert config.validation.sets["general"].role == "general"
    with pytest.raises(BadInput, match="--replay law: names no dataset of the configuration"):
        by("llama-factory", replay=["law"])


def test_conversations_are_packed_and_attend_to_themselves() -> None:
    text = "stage: sft\nmodel_name_or_path: base\nfinetuning_type: full\ndataset: chats\nmax_steps: 10\n"
    config, found = imported(f"{text}neat_packing: true\n", ranks=2)
    assert (config.data.packing, config.data.attention) == ("best_fit", "within_documents")
    assert "prepare FILES --chat" in result_of(found, "dataset")[1]
    assert refused(found) == set()
    config, found = imported(text, ranks=2)
    assert config.data.packing == "best_fit"
    assert "packing" in refused(found)
    _, found = imported(f"{text}packing: true\n", ranks=2)
    assert "see each other there" in result_of(found, "packing")[1]


def test_frozen_layers_and_adapters() -> None:
    text = "stage: pt\nmodel_name_or_path: base\ndataset: a\nmax_steps: 10\ncutoff_len: 64\n"
    config, _ = imported(f"{text}finetuning_type: freeze\nfreeze_trainable_layers: 1\n", ranks=1)
    assert (config.model.frozen.bottom, config.model.frozen.top, config.model.frozen.embeddings) == (1, 0, True)
    config, _ = imported(f"{text}finetuning_type: freeze\nfreeze_trainable_layers: -1\n", ranks=1)
    assert (config.model.frozen.bottom, config.model.frozen.top) == (0, 1)
    _, found = imported(text, ranks=1)
    assert "adapters" in result_of(found, "finetuning_type")[1]


def test_rope_scaling_of_llama_factory_is_a_whole_factor() -> None:
    text = "stage: pt\nmodel_name_or_path: base\nfinetuning_type: full\ndataset: a\nmax_steps: 10\nrope_scaling: yarn\n"
    config, _ = imported(f"{text}cutoff_len: 300\n", ranks=1)
    assert config.model.rope is not None
    assert (config.model.rope.scaling, config.model.rope.factor) == ("yarn", 3)
    assert config.model.rope.max_position_embeddings == 3 * 128
    config, found = imported(f"{text}cutoff_len: 128\n", ranks=1)
    assert config.model.rope is None
    assert result_of(found, "rope_scaling")[0] == "equal"


def test_the_trainer() -> None:
    config, found = by("hf-trainer")
    assert (config.total_steps, config.training.global_batch_size) == (400, 4 * 2 * 4)
    schedule = config.schedule
    assert (schedule.kind, schedule.decay_shape, schedule.decay) == ("wsd", "1-sqrt", Duration(40, "steps"))
    assert (schedule.final_lr, schedule.initial_lr, schedule.warmup) == (3e-6, 3e-6, Duration(20, "steps"))
    assert (config.optimizer.weight_decay, config.optimizer.beta2) == (0.0, 0.999)
    assert config.checkpoint.save_interval == Duration(100, "steps")
    assert refused(found) == set()
    _, found = by("hf-trainer", "eval_strategy=steps", "some_key=3", "fp16=true")
    assert refused(found) == {"eval_strategy", "some_key", "fp16"}


@pytest.mark.parametrize(
    ("changes", "kind", "final", "warmup"),
    [
        (["lr_scheduler_type=linear", "lr_scheduler_kwargs={}"], "linear", 0.0, 20),
        (["lr_scheduler_type=constant", "lr_scheduler_kwargs={}"], "constant", 0.0, None),
        (["lr_scheduler_type=constant_with_warmup", "lr_scheduler_kwargs={}"], "constant", 0.0, 20),
        (["lr_scheduler_type=polynomial", "lr_scheduler_kwargs={}"], "linear", 1e-7, 20),
        (["lr_scheduler_type=cosine_with_min_lr", "lr_scheduler_kwargs={min_lr_rate: 0.2}"], "cosine", 6e-6, 20),
        (["lr_scheduler_type=cosine", "lr_scheduler_kwargs={}", "warmup_steps=0.1"], "cosine", 0.0, 40),
        (
            ["lr_scheduler_type=cosine", "lr_scheduler_kwargs={}", "warmup_steps=0", "warmup_ratio=0.1"],
            "cosine",
            0,
            40,
        ),
    ],
)
def test_schedules_of_the_trainer(changes: list[str], kind: str, final: float, warmup: int | None) -> None:
    config, found = by("hf-trainer", *changes)
    assert (config.schedule.kind, config.schedule.final_lr) == (kind, final)
    assert config.schedule.warmup == (None if warmup is None else Duration(warmup, "steps"))
    assert refused(found) == set()
    _, found = by("hf-trainer", "lr_scheduler_type=inverse_sqrt", "lr_scheduler_kwargs={timescale: 9}")
    assert refused(found) == {"lr_scheduler_type", "lr_scheduler_kwargs.timescale"}


def test_every_argument_of_the_trainer_that_is_installed_is_in_its_table() -> None:
    program = PROGRAMS["hf-trainer"]
    missing = [one.name for one in dataclasses.fields(Seq2SeqTrainingArguments) if key_of(program, one.name) is None]
    assert missing == []


def test_axolotl() -> None:
    config, found = by("axolotl")
    assert (config.training.global_batch_size, config.total_steps) == (32, 3_000_000 // 2048)
    assert {name: one.epochs for name, one in config.data.sources.items()} == {"books": 1, "wiki": 1}
    assert (config.data.packing, config.schedule.final_lr) == ("best_fit", 2e-6)
    assert config.schedule.warmup == Duration(int(0.03 * config.total_steps), "steps")
    assert config.checkpoint.save_interval == Duration(config.total_steps, "steps")
    assert refused(found) == set()


def test_megatron_bridge() -> None:
    config, found = by("megatron-bridge")
    assert (config.total_steps, config.training.global_batch_size, config.parallel.tensor) == (500, 32, 2)
    assert {name: one.weight for name, one in config.data.sources.items()} == {"medicine": 0.7, "general": 0.3}
    assert (config.model.dropout, config.run.seed, config.run.folder) == (0.0, 5, "results/ckpt-cpt")
    assert config.schedule.warmup == Duration(50 * 32 * 64)
    assert refused(found) == {"dataset.split", "validation.eval_iters", "checkpoint.pretrained_checkpoint"}
    assert config.validation.micro_batch_size == 2
    assert result_of(found, "optimizer.exp_avg_dtype")[0] == "equal"
    assert result_of(found, "dataset.seq_length")[0] == result_of(found, "train.train_samples")[0] == "equal"
    _, found = by("megatron-bridge", "optimizer.exp_avg_dtype={_target_: torch.bfloat16, _call_: false}")
    assert "optimizer.exp_avg_dtype" in refused(found)
    _, found = by("megatron-bridge", "model.hidden_size=32", "ddp.grad_reduce_in_fp32=false", "train.some_key=3")
    assert refused(found) >= {"model.hidden_size", "ddp.grad_reduce_in_fp32", "train.some_key"}


def test_arguments_of_megatron_hold_over_a_file() -> None:
    config, _ = by(
        "megatron-bridge", "optimizer.min_lr=1e-6", "--lr", "1e-4", "--train-iters", "60", "--lr-decay-iters", "60"
    )
    assert (config.schedule.peak_lr, config.schedule.final_lr, config.total_steps) == (1e-4, 1e-6, 60)
    with pytest.raises(BadInput, match="--lr: is no change of a configuration of axolotl"):
        by("axolotl", "--lr", "1e-4")


def test_nemo() -> None:
    config, found = by("nemo")
    assert (config.total_steps, config.training.recompute, config.stop.after) == (1000, "selective", "230m")
    assert (config.optimizer.beta2, config.optimizer.clip_grad) == (0.98, 0.5)
    assert (config.data.sequence_length, config.run.wandb_project, config.run.seed) == (64, "cpt", 77)
    assert config.parallel.distributed_optimizer
    save_top_k = "exp_manager.checkpoint_callback_params.save_top_k"
    assert refused(found) == {"restore_from_path", "trainer.limit_val_batches", save_top_k}
    assert "0.9 times the run" in result_of(found, "model.optim.sched.constant_steps")[1]
    assert config.schedule.tokens == Duration(900 * config.tokens_per_step)


def test_nemo_2() -> None:
    config, found = imported(NEMO_2, model="base")
    assert (config.total_steps, config.training.global_batch_size, config.parallel.tensor) == (100, 16, 2)
    assert (config.schedule.kind, config.schedule.peak_lr, config.schedule.final_lr) == ("cosine", 1e-4, 1e-5)
    assert (config.training.precision, config.optimizer.beta2) == ("bf16", 0.95)
    assert config_faults(config, 4) == []
    assert refused(found) == {"log.ckpt.save_top_k"}


def test_olmo_core() -> None:
    config, found = by("olmo-core")
    assert (config.training.global_batch_size, config.training.micro_batch_size) == (2048 // 64, 128 // 64)
    assert config.total_steps == round(1_000_000 / 2048)
    assert {name: (one.weight, one.max_epochs) for name, one in config.data.sources.items()} == {
        "math": (0.3, 2.0),
        "web": (0.7, 1.0),
    }
    assert config.optimizer.no_weight_decay == ["embedding"]
    assert (config.schedule.kind, config.schedule.warmup) == ("cosine", Duration(20, "steps"))
    assert config.schedule.final_lr == pytest.approx(2e-5)
    assert (config.training.on_spike, config.training.z_loss, config.training.recompute) == ("skip", 1e-5, "selective")
    assert config.data.attention == "within_documents"
    assert (config.checkpoint.save_interval, config.checkpoint.keep_every) == (
        Duration(50, "steps"),
        Duration(200, "steps"),
    )
    assert refused(found) == {"model.n_layers", "load_path", "trainer.callbacks.downstream_evaluator.tasks"}


@pytest.mark.parametrize(
    ("changes", "kind", "final"),
    [
        (["train_module.scheduler={type: wsd, warmup: 10, decay: 20}"], "wsd", 0.0),
        (["train_module.scheduler={type: linear_with_warmup, warmup_fraction: 0.1, alpha_f: 0}"], "linear", 0.0),
        (["train_module.scheduler={type: constant_with_warmup, warmup: 10}"], "constant", 0.0),
        (["train_module.scheduler.t_max=976"], "cosine", 2e-5),
    ],
)
def test_schedules_of_olmo_core(changes: list[str], kind: str, final: float) -> None:
    config, found = by("olmo-core", *changes)
    assert config.schedule.kind == kind
    assert config.schedule.final_lr == pytest.approx(final)
    assert config.schedule.tokens == (Duration(976, "steps") if kind == "cosine" else None)
    _, found = by("olmo-core", "train_module.scheduler={type: power_lr, warmup: 10}")
    assert "train_module.scheduler.type" in refused(found)


def test_lists_of_instance_sources_are_told_of() -> None:
    config, found = by("olmo-core", "dataset=[{sources: [{paths: [a]}]}]")
    assert list(config.data.sources) == ["text"]
    assert "not read" in result_of(found, "dataset")[1] and "dataset" in refused(found)


def test_epochs_of_olmo_core_need_the_tokens_of_its_datasets() -> None:
    changes = ["trainer.max_duration={value: 2, unit: epochs}"]
    config, found = by("olmo-core", *changes, "dataset.source_mixture_config.requested_tokens=600_000")
    assert config.total_steps == 2 * 600_000 // 2048
    assert result_of(found, "dataset.source_mixture_config.requested_tokens")[0] == "taken"
    changes.append("dataset.source_mixture_config.requested_tokens=null")
    with pytest.raises(BadInput, match="--assume math=1B web=1B"):
        by("olmo-core", *changes)
    config, _ = by("olmo-core", *changes, assumed={"math": 300_000, "web": 700_000})
    assert config.total_steps == 2_000_000 // 2048


@pytest.mark.parametrize(
    ("program", "changes", "options", "said"),
    [
        ("llama-factory", [], {"ranks": None}, "Give them with --nproc"),
        ("llama-factory", [], {"assumed": {"medicine": 5}}, "--assume general=1B"),
        ("llama-factory", ["stage=dpo"], {}, "trains on preferences"),
        ("llama-factory", ["learning_rate=fast"], {}, "learning_rate: fast: is no number"),
        ("llama-factory", ["interleave_probs='1,2,3'"], {}, "is not one number for each dataset"),
        ("llama-factory", [], {"model": "nowhere"}, "--model nowhere: there is no config.json in it"),
        ("hf-trainer", ["block_size=null"], {}, "block_size"),
        ("hf-trainer", ["per_device_train_batch_size=0"], {}, "per_device_train_batch_size: 0: is less than 1"),
        ("llama-factory", ["gradient_accumulation_steps=-2"], {}, "gradient_accumulation_steps: -2: is less than 1"),
        ("axolotl", ["num_epochs=0"], {}, "num_epochs: 0: is no length of a run"),
        ("hf-trainer", ["model_name_or_path=[a, b]"], {"model": None}, "is not the name of one Hugging Face folder"),
        ("hf-trainer", ["lr_scheduler_kwargs=min_lr_rate=0.1"], {}, "is neither a mapping nor JSON of one"),
        ("hf-trainer", ["lr_scheduler_kwargs='{min_lr: 1}'"], {}, "lr_scheduler_kwargs: {min_lr: 1}: is no JSON"),
        ("megatron-bridge", ["dataset.blend=[[a, b], [0.5]]"], {}, "does not have one number for each of its 2"),
        ("megatron-bridge", ["dataset.blend=[[a, b], [0.5, 0.2, 0.3]]"], {}, "does not have one number for each"),
        ("megatron-bridge", ["dataset.blend=[[a, b], [c, d]]"], {}, "does not have one number for each"),
        ("megatron-bridge", ["dataset.blend=[a, b]"], {}, "is not a list of prefixes and one of their weights"),
        ("nemo", ["model.data.data_prefix=[[a, b], [0.5]]"], {}, "does not have one number for each of its 2"),
        ("olmo-core", ["trainer.max_duration.value=0"], {}, "trainer.max_duration.value: 0: is less than 1"),
        ("olmo-core", ["data_loader.global_batch_size=100"], {}, "not whole sequences of 64"),
        ("megatron-bridge", ["train.train_iters=many"], {}, "is not what --train-iters of Megatron-LM takes"),
        ("nemo", ["model.optim.lr=null"], {}, "--lr: was not given"),
        ("axolotl", ["nothing"], {}, "is no change of a configuration"),
    ],
)
def test_what_no_run_can_be_made_of(program: str, changes: list[str], options: dict[str, Any], said: str) -> None:
    with pytest.raises(BadInput, match=re.escape(said)):
        by(program, *changes, **options)


def test_a_model_of_the_hub_is_written_with_the_command_that_fetches_it() -> None:
    config, found = by("llama-factory", "model_name_or_path=Qwen/Qwen3-4B-Base")
    assert config.model.hf == "Qwen/Qwen3-4B-Base"
    assert "hf download Qwen/Qwen3-4B-Base --local-dir Qwen3-4B-Base" in result_of(found, "model_name_or_path")[1]


@pytest.mark.parametrize("value", ["x", -1, [[1], 2], 10**30], ids=str)
@pytest.mark.parametrize("program", PROGRAMS)
def test_whatever_a_value_is_it_is_taken_or_told(program: str, value: Any) -> None:
    """A value that a key cannot have is a fault, here or of the run.yaml; never a traceback."""
    path = Path("config.yaml")
    path.write_text(TEXTS[program])
    for key in read_config_file(path).values:
        change = f"{key}={json.dumps(value)}"
        try:
            by(program, change)
        except BadInput as error:
            assert error.faults, change


def test_mappings_of_the_trainer_may_be_json_in_a_text() -> None:
    """As TrainingArguments reads them."""
    kwargs = """lr_scheduler_kwargs='{"min_lr_rate": 0.1}'"""
    for program, final in (("hf-trainer", 3e-6), ("llama-factory", 1e-6)):
        config, found = by(program, "lr_scheduler_type=cosine_with_min_lr", kwargs)
        assert config.schedule.final_lr == final
        assert result_of(found, "lr_scheduler_kwargs.min_lr_rate")[0] == "taken"
    config, _ = by("hf-trainer", """lr_scheduler_kwargs='{"num_decay_steps": "30"}'""")
    assert config.schedule.decay == Duration(30, "steps")
    config, _ = by("hf-trainer", """deepspeed='{"zero_optimization": {"stage": 0}}'""")
    assert not config.parallel.distributed_optimizer
    _, found = by("hf-trainer", """accelerator_config='{"split_batches": true}'""", "optim_args='a=1,b=2'")
    assert refused(found) == {"accelerator_config.split_batches", "optim_args"}


def test_fsdp_may_recompute_activations() -> None:
    for key in ("activation_checkpointing", "fsdp_activation_checkpointing"):
        off = ["gradient_checkpointing=false", "fsdp=full_shard"]
        config, found = by("hf-trainer", *off, f"fsdp_config={{{key}: true}}")
        assert (config.training.recompute, config.parallel.distributed_optimizer) == ("full", True)
        assert result_of(found, f"fsdp_config.{key}")[0] == "taken"
        config, _ = by("hf-trainer", *off, f"fsdp_config={{{key}: false}}")
        assert config.training.recompute != "full"


@pytest.mark.parametrize(("times", "epochs", "steps"), [(2, 4, 250), (1, 4, 500), (2, 1, 1000)])
def test_saves_per_epoch_are_shares_of_the_run_in_axolotl(times: int, epochs: int, steps: int) -> None:
    changes = [f"saves_per_epoch={times}", f"evals_per_epoch={times}", f"num_epochs={epochs}", "max_steps=2000"]
    config, found = by("axolotl", *changes)
    assert config.total_steps == 2000
    assert config.checkpoint.save_interval == config.validation.eval_interval.every == Duration(steps, "steps")
    assert result_of(found, "saves_per_epoch")[0] == "taken"


@pytest.mark.parametrize(
    ("old", "text", "said"),
    [
        (".yaml", "max_steps: 5\nmax_steps: 7\n", "the key `max_steps` is given twice"),
        (".json", '{"max_steps": 5, "max_steps": 7}', "the key `max_steps` is given twice"),
        (".json", '{"a": {"b": 5, "b": 7}}', "the key `b` is given twice"),
    ],
)
def test_a_key_given_twice_is_refused(old: str, text: str, said: str) -> None:
    path = Path(f"config{old}")
    path.write_text(text)
    with pytest.raises(BadInput, match=said):
        read_config_file(path, program="hf-trainer")


def test_deepspeed_is_read_for_its_stage() -> None:
    Path("zero.json").write_text('{"zero_optimization": {"stage": 0}}')
    config, _ = by("llama-factory", "deepspeed=zero.json")
    assert not config.parallel.distributed_optimizer
    config, _ = by("llama-factory", "deepspeed={zero_optimization: {stage: 2}}")
    assert config.parallel.distributed_optimizer


def test_files_and_folders_that_hold_a_configuration() -> None:
    Path("step100").mkdir()
    Path("step100/config.json").write_text(json.dumps(OLMO_CORE))
    assert config_path(Path("step100")) == Path("step100/config.json")
    assert config_path(Path("base")) is None  # a model's config.json
    assert config_path(Path("pretrain.sh")) is None
    Path("out").mkdir()
    Path("out/training_args.bin").touch()
    for path in (Path("out"), Path("out/training_args.bin"), Path("x.pt")):
        with pytest.raises(BadInput, match="is a pickle"):
            config_path(path)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("- a\n- b\n", "holds no keys"),
        ("a: [1\n", "cannot be read"),
        ("a: !!python/object/apply:os.getcwd []\n", "cannot be read"),
        ("colour: blue\n", "Name the program with --from"),
        (BOMB, "more than 100,000 values"),
    ],
)
def test_files_that_hold_none(text: str, said: str) -> None:
    Path("config.yaml").write_text(text)
    with pytest.raises(BadInput, match=said):
        read_config_file(Path("config.yaml"), program=None if "colour" in text else "axolotl")


def test_references_of_omegaconf_are_resolved() -> None:
    Path("config.yaml").write_text("a: {b: 5, c: '${.b}', d: '${a.c}', e: '${oops:1}', f: '${a.f}'}\n")
    values = read_config_file(Path("config.yaml"), program="nemo").values
    assert (values["a.c"], values["a.d"], values["a.e"], values["a.f"]) == (5, 5, "${oops:1}", "${a.f}")


@pytest.mark.parametrize("program", PROGRAMS.values(), ids=list(PROGRAMS))
def test_every_row_of_a_table_holds(program: Any) -> None:
    names = {key.name for key in table(program)}
    shapes = {field.name for field in dataclasses.fields(ModelShape)}
    for key in table(program):
        assert key.words and not key.words.endswith("."), key.name
        match key.treatment:
            case "key" | "steps" | "rule":
                assert exists(key.words.split(".")) or key.words.startswith("megatron."), key.name
            case "same":
                assert key.words.removeprefix("not ") in {*names, *by_flag()}, key.name
            case "shape":
                assert key.words in shapes, key.name
            case "refused":
                assert re.search(r"\. [A-Z]", key.words), f"{key.name}: no remedy"
        for named in NAMED.findall(key.words) if key.treatment != "same" else ():
            assert exists(named.split(".")) or named.startswith("megatron."), f"{key.name}: {named}"
