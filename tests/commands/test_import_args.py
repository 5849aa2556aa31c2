"""`megatron-cpt import-args`: what is written, what is printed, and that `plan` takes it."""

import argparse
import shutil
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
import yaml

from megatron_cpt.commands.dispatch import main
from megatron_cpt.config.load import load_config
from megatron_cpt.planning.megatron_lm_arguments import table
from megatron_cpt.planning.megatron_lm_checkpoint import checkpoint_state, iteration_folder, read_checkpoint
from megatron_cpt.runs.checkpoint_state import write_marker
from megatron_cpt.runs.folder import write_json
from tests.planning.megatron_lm_lists import LISTS
from tests.planning.other_configs import LLAMA_FACTORY
from tests.planning.small_run import SIZES_OF_70M, write_dataset, write_model

NEEDED = (
    "--seq-length 32 --micro-batch-size 2 --global-batch-size 8 --train-iters 50 --lr 1e-3 --min-lr 1e-5 --bf16 "
    "--lr-decay-style cosine --data-path 0.7 law 0.3 web --split 99,1,0 --save old"
)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A model, two datasets and a script, in the working folder."""
    monkeypatch.chdir(tmp_path)
    write_model(tmp_path / "base")
    for name in ("law", "web"):
        write_dataset(tmp_path / name, 20_000, tmp_path / "base")
    Path("pretrain.sh").write_text(f'ARGS="{NEEDED}"\ntorchrun --nproc_per_node 4 pretrain_gpt.py $ARGS\n')
    Path("recipe.py").write_text("def pretrain_recipe(): ...\n")
    return tmp_path


def test_a_script_becomes_a_run_that_plan_takes(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["import-args", "pretrain.sh", "--model", "base", "--replay", "web"]) == 0
    printed = capsys.readouterr().out
    assert "\ntaken: " in printed and "\nrefused: " in printed
    assert "next: megatron-cpt plan run.yaml --nproc 4" in printed
    assert "# --split 99,1,0: Megatron-LM trains on the first 99.00%" in Path("run.yaml").read_text()
    assert main(["plan", "run.yaml", "--nproc", "4"]) == 0
    plan = capsys.readouterr().out
    assert "50 steps of 8 x 32 = 256 tokens" in plan and "70.00 %" in plan
    assert main(["import-args", "pretrain.sh", "--model", "base"]) == 2  # run.yaml is there


def test_words_after_the_dashes_hold_over_the_script(here: Path) -> None:
    assert main(["import-args", "pretrain.sh", "--model", "base", "--", "--lr", "2e-3", "--data-path", "law"]) == 0
    config = load_config("run.yaml")
    assert (config.schedule.peak_lr, list(config.data.sources)) == (2e-3, ["law"])


def test_a_list_alone_and_a_file_with_one(here: Path) -> None:
    assert main(["import-args", "--model", "base", "--output", "a.yaml", "--", *NEEDED.split()]) == 0
    Path("list.txt").write_text(NEEDED)
    assert main(["import-args", "list.txt", "--model", "base", "--output", "b.yaml"]) == 0
    assert yaml.safe_load(Path("a.yaml").read_text()) == yaml.safe_load(Path("b.yaml").read_text())


def test_a_checkpoint_by_its_newest_iteration(here: Path) -> None:
    values = {"seq_length": 32, "micro_batch_size": 2, "global_batch_size": 8, "train_iters": 50, "lr": 1e-3}
    args = argparse.Namespace(**({each.dest: None for each in table()} | values | {"data_path": ["law"]}))
    Path("old/iter_0000050").mkdir(parents=True)
    Path("old/latest_checkpointed_iteration.txt").write_text("50\n")
    torch.save({"args": args, "iteration": 50}, "old/iter_0000050/common.pt")
    for source in ("old", "old/iter_0000050"):
        assert main(["import-args", source, "--model", "base", "--output", f"{Path(source).name}.yaml"]) == 0
    assert load_config("old.yaml").total_steps == 50


def test_a_configuration_of_another_program_goes_over_to_a_plan(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("llama_factory.yaml").write_text(LLAMA_FACTORY)
    assumed = ["--nproc", "8", "--assume", "medicine=2M", "general=10M"]
    words = ["import-args", "llama_factory.yaml", "--replay", "general", *assumed, "--", "learning_rate=3e-5"]
    assert main(words) == 0
    printed = capsys.readouterr().out
    assert "refused: it changes" in printed and "trust_remote_code: true" in printed
    assert "next: megatron-cpt plan run.yaml --nproc 8" in printed and "to mend first" not in printed
    text = Path("run.yaml").read_text()
    assert "differs in meaning from LLaMA-Factory" in text and "# trust_remote_code: true: No code" in text
    # Whoever leaves one out is told, and so is who gives none.
    assert "medicine=2M general=10M medicine.validation=TOKENS general.validation=TOKENS\n" in printed
    assert main(["plan", "run.yaml", *assumed]) == 2
    assert "Say it: --assume medicine.validation=TOKENS general.validation=TOKENS." in capsys.readouterr().err
    held_out = ["medicine.validation=1M", "general.validation=1M"]
    assert main(["plan", "run.yaml", *assumed, *held_out]) == 0
    plan = capsys.readouterr().out
    assert "697 steps of 128 x 64 = 8,192 tokens" in plan and "3e-05 at the highest" in plan and "30.00 %" in plan


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["training_args.bin"], "training_args.bin: is a pickle"),
        (["--nproc", "2", "law.json"], "law.json: cannot be read: No such file"),
        ([], "neither a script"),
        (["--nproc", "0", "pretrain.sh"], "--nproc 0: is less than 1"),
        (["pretrain.sh", "--assume", "medicine=0"], "--assume medicine=0: is a dataset without tokens"),
        (["nothing.sh"], "nothing.sh: cannot be read: No such file"),
        (["recipe.py"], "recipe.py: is a Python program, and nothing is executed."),
        (["base", "--model", "base"], "common.pt"),
        (["pretrain.sh"], "no Hugging Face folder is named"),
        (["pretrain.sh", "--model", "law"], "there is no config.json in it"),
        (["pretrain.sh", "--model", "base", "--replay", "books"], "--replay books: is no prefix of --data-path"),
    ],
)
def test_what_is_wrong_is_one_message(
    here: Path, words: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["import-args", *words]) == 2
    error = capsys.readouterr().err
    assert said in error and "Traceback" not in error
    assert not Path("run.yaml").exists()


def test_a_list_for_llama_3_8b_goes_over_to_a_plan(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The whole list, on a folder that is the real one's in shape, with short sequences of small datasets."""
    sizes = {"hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32}
    shape = sizes | {"num_key_value_heads": 8, "max_position_embeddings": 8192, "rope_theta": 500000.0}
    write_model(here / "Llama-3-8B", rms_norm_eps=1e-5, vocab_size=128256, **shape)
    for name in ("medicine_text_document", "general_text_document"):
        write_dataset(here / name, 30_000, here / "Llama-3-8B")
    words = LISTS["llama-3-8b"].replace("--train-iters 3000", "--train-iters 2").split()
    assert main(["import-args", "--", *words]) == 0
    assert "3 refused, 0 unknown" in capsys.readouterr().out
    assert main(["plan", "run.yaml", "--nproc", "8"]) == 0
    assert "2 steps of 192 x 8192" in capsys.readouterr().out


def test_a_script_with_conditions_loops_and_another_shell(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("slurm.sh").write_text(
        "MODEL=8b; LR=3e-5; GBS=256\n"
        '[ "$MODEL" = 70b ] && LR=1.5e-5\n[[ $MODEL == 70b ]] && GBS=1024\ntest -z "$MODEL" && GBS=99\n'
        "[ -f old/latest ] && LR=1e-6\n"
        'for i in law web; do DATA="$DATA 1.0 $i"; done\n'
        "SAVE=${1:?a folder}\n"
        f"ARGS=({NEEDED} --lr $LR --global-batch-size $GBS --data-path $DATA --save $SAVE)\n"
        'srun bash -c "torchrun --nproc_per_node 4 pretrain_gpt.py ${ARGS[*]} --wandb-exp-name run-$(date +%s)"\n'
    )
    assert main(["import-args", "slurm.sh", "--model", "base"]) == 2
    assert "needs its own parameters $1 (line 7). It says: a folder." in capsys.readouterr().err
    assert main(["import-args", "slurm.sh", "mine", "--model", "base"]) == 0
    config, printed = load_config("run.yaml"), capsys.readouterr().out
    assert (config.schedule.peak_lr, config.training.global_batch_size, config.run.folder) == (3e-5, 256, "mine-cpt")
    assert list(config.data.sources) == ["law", "web"]
    assert "note: line 5: `[ -f old/latest ]` cannot be evaluated here, and was taken as false; otherwise" in printed
    equal = printed.partition("equal: nothing")[2]
    assert "--wandb-exp-name run-$(date +%s)" in equal


def test_a_value_that_only_a_program_gives_is_asked_for(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("computed.sh").write_text(
        f"ITERS=$(python3 -c 'print(50)')\ntorchrun pretrain_gpt.py {NEEDED} --train-iters $ITERS $(cat more)\n"
    )
    assert main(["import-args", "computed.sh", "--model", "base"]) == 2
    said = capsys.readouterr().err
    assert "line 1: `$(python3 -c 'print(50)')` is not run. Give it after `--`: `-- --train-iters VALUE`." in said
    assert "note: line 2: `$(cat more)` is not run: the arguments that it gives are left out" in said
    assert main(["import-args", "computed.sh", "--model", "base", "--", "--train-iters", "40"]) == 0
    assert load_config("run.yaml").total_steps == 40
    assert "`$(cat more)` is not run" in capsys.readouterr().out


@pytest.mark.parametrize("value", ["$LR", "`lr`", "${LR}"])
def test_no_value_stands_for_another(here: Path, value: str, capsys: pytest.CaptureFixture[str]) -> None:
    Path("list.txt").write_text(f"{NEEDED} --save runs/{value}")
    assert main(["import-args", "list.txt", "--model", "base"]) == 2
    assert "the file is a list of arguments, and no script" in capsys.readouterr().err
    assert main(["import-args", "pretrain.sh", "--model", "base", "--", "--lr", value]) == 2
    assert "after `--` it has to be the value itself" in capsys.readouterr().err
    Path("trainer.yaml").write_text(LLAMA_FACTORY.replace("output_dir: ", f'output_dir: "{value}" # '))
    assumed = ["--nproc", "8", "--assume", "medicine=2M", "general=10M"]
    assert main(["import-args", "trainer.yaml", *assumed]) == 2
    assert "stands for a value that is not known here" in capsys.readouterr().err
    assert not Path("run.yaml").exists()


def test_that_no_source_is_replay_is_told(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def note(*words: str) -> str:
        Path("run.yaml").unlink(missing_ok=True)
        assert main(["import-args", *words]) == 0
        return capsys.readouterr().out.partition("no source has the role of replay")[2]

    assert "`--replay NAME` gives the role; the names are law, web.\n" in note("pretrain.sh", "--model", "base")
    assert not note("pretrain.sh", "--model", "base", "--replay", "web")
    Path("trainer.yaml").write_text(LLAMA_FACTORY)
    assumed = ["--nproc", "8", "--assume", "medicine=2M", "general=10M"]
    assert "the names are medicine, general.\n" in note("trainer.yaml", *assumed)
    assert not note("trainer.yaml", "--replay", "general", *assumed)
    sets = load_config("run.yaml").validation.sets
    assert {name: one.role for name, one in sets.items()} == {"medicine": "domain", "general": "general"}


def test_validation_sets_have_the_role_of_their_source(here: Path) -> None:
    words = NEEDED.replace("--data-path", "--train-data-path").replace("--split 99,1,0", "--eval-iters 2")
    words += " --eval-interval 10 --valid-data-path 1 law.validation 1 web_valid 1 other"
    assert main(["import-args", "--model", "base", "--replay", "web", "--", *words.split()]) == 0
    sets = yaml.safe_load(Path("run.yaml").read_text())["validation"]["sets"]
    assert [one.get("role") for one in sets.values()] == ["domain", "general", None]


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--lr-warmup-iters", "90"], "schedule.warmup"),
        (["--lr", "nan"], "schedule.peak_lr"),
        (["--global-batch-size", "6"], "training.global_batch_size"),
    ],
)
def test_what_plan_will_refuse_is_told(
    here: Path, capsys: pytest.CaptureFixture[str], words: list[str], told: str
) -> None:
    assert main(["import-args", "pretrain.sh", "--model", "base", "--", *words]) == 0
    printed = capsys.readouterr().out
    assert told in printed.partition("to mend first, for `plan` refuses it:")[2], printed
    assert main(["plan", "run.yaml", "--nproc", "4"]) == 2
    assert told in capsys.readouterr().err


def write_underway(folder: Path, iteration: int, **changes: object) -> None:
    """A checkpoint of Megatron-LM's at an iteration of 50, as far as import-args reads it."""
    values = {"seq_length": 32, "micro_batch_size": 2, "global_batch_size": 8, "train_iters": 50, "lr": 1e-3}
    values |= {"lr_decay_style": "cosine", "lr_decay_iters": 50, "lr_warmup_iters": 10, "min_lr": 1e-5}
    values |= {"data_path": ["0.7", "law", "0.3", "web"], "split": "100,0,0", "save": "old", "load": "old"}
    values |= {"consumed_train_samples": 8 * iteration, "use_distributed_optimizer": True} | changes
    args = argparse.Namespace(**({each.dest: None for each in table()} | values))
    scheduler = {
        "max_lr": 1e-3,
        "min_lr": 1e-5,
        "lr_warmup_steps": 80,
        "lr_decay_steps": 400,
        "num_steps": 8 * iteration,
    }
    shards = folder / f"iter_{iteration:07}"
    shards.mkdir(parents=True)
    (folder / "latest_checkpointed_iteration.txt").write_text(f"{iteration}\n")
    torch.save({"args": args, "iteration": iteration, "opt_param_scheduler": scheduler}, shards / "common.pt")


def test_a_run_underway_is_continued(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_underway(Path("old"), 20)
    assert main(["import-args", "old", "--model", "base"]) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert "iteration 20 of the checkpoint training.tokens: the 30 steps that are left" in printed
    assert "160 samples of the schedule schedule.consumed: 4864" in printed
    # 112 of 160 samples of 32 tokens from a dataset of 20,000.
    assert "160 samples read Sources are read from their beginning" in printed and "law 0.179, web 0.0768" in printed
    assert "max_lr" not in printed and "run goes on from the checkpoint itself" in printed
    assert "# Read 0.179 times before this run" in Path("run.yaml").read_text()
    assert main(["plan", "run.yaml", "--nproc", "4"]) == 0
    plan = capsys.readouterr().out
    # A cosine from 1e-3 at 80 samples to 1e-5 at 400, of which 160 to 392 are left.
    assert "30 steps of 8 x 32 = 256 tokens" in plan
    assert "Rate     0.000855 at the first step, 0.000855 at the highest, 1.15e-05 at the last" in plan


def test_what_a_run_underway_does_not_have_is_no_part_of_it(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Its weights are not those of the model that is named, and what is known of a base is not known of it."""
    write_underway(Path("old"), 20, world_size=4, lr_decay_style="inverse-square-root")
    write_model(here / "pythia-70m", **SIZES_OF_70M)
    assert main(["import-args", "old", "--model", "pythia-70m"]) == 0
    printed = capsys.readouterr().out
    assert "next: megatron-cpt plan run.yaml --nproc 4" in printed  # the ranks that wrote it
    printed = " ".join(printed.split())
    refused = printed.partition("refused: ")[2]
    assert "weights of iteration 20 the run begins with the weights of --model" in refused
    assert "--min-lr 1e-05 It belongs to a schedule that is not there" in refused
    assert "--lr-decay-iters 50 It belongs to a schedule that is not there" in refused
    assert "the rate that it would have had" not in printed
    assert load_config("run.yaml").base_history is None
    assert main(["import-args", "old", "--model", "pythia-70m", "--output", "anew.yaml", "--", "--finetune"]) == 0
    assert load_config("anew.yaml").base_history is not None


def test_a_run_underway_begins_anew_where_it_is_told_to_or_is_done(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_underway(Path("old"), 20)
    write_underway(Path("done"), 50)
    for source, words in (("old", ["--", "--finetune"]), ("done", [])):
        assert main(["import-args", source, "--model", "base", "--output", f"{source}.yaml", *words]) == 0
        config = load_config(f"{source}.yaml")
        assert (config.total_steps, config.schedule.consumed, config.schedule.tokens) == (50, None, None)
        assert config.optimizer.moment_warmup_steps == 0
    assert "the run has done its 50 steps" in " ".join(capsys.readouterr().out.split())


def test_what_of_a_run_underway_cannot_go_on_is_told(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_underway(Path("old"), 20, data_path=["elsewhere"], train_iters=None, train_samples=400, lr_decay_iters=None)
    words = ["--rampup-batch-size", "2", "2", "200", "--lr", "2e-3", "--lr-warmup-samples", "80"]
    assert main(["import-args", "old", "--model", "base", "--", *words]) == 0
    printed = " ".join(capsys.readouterr().out.partition("refused: ")[2].split())
    assert "--rampup-batch-size 2 2 200 The batches grow until sample 200" in printed
    assert "max_lr 0.001 of the scheduler The arguments say 0.002, and that is in the run.yaml" in printed
    assert "160 samples read" in printed and "`megatron-cpt audit --data-path ... --train-samples 160`" in printed
    assert "state of Adam optimizer.moment_warmup_steps: 100 fills the moments anew" in printed
    config = load_config("run.yaml")
    assert (config.total_steps, config.training.batch_size_rampup) == (30, None)


def write_converted(folder: Path, source: Path) -> None:
    """What import-args reads of a checkpoint that `convert from-megatron` wrote."""
    shutil.copytree("base", folder / "hf")
    state = checkpoint_state(read_checkpoint(iteration_folder(source)), str(source))
    write_json(folder / "position.json", asdict(state))
    write_marker(folder, {})


def test_a_run_underway_goes_on_with_the_optimizer_state_of_a_converted_checkpoint(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_underway(Path("old"), 20, use_distributed_optimizer=False)
    write_underway(Path("newer"), 30)
    write_converted(Path("converted"), Path("old"))
    assert main(["import-args", "old", "--model", "converted"]) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert "state of Adam init_from.load_optimizer: main weights and moments after 20 updates" in printed
    config = load_config("run.yaml")
    assert (config.model.hf, config.init_from.checkpoint) == ("converted/hf", "converted")
    assert config.init_from.load_optimizer and config.parallel.distributed_optimizer
    assert config.optimizer.moment_warmup_steps == 0
    # Begun anew it takes the weights alone.
    assert main(["import-args", "old", "--model", "converted", "--output", "anew.yaml", "--", "--finetune"]) == 0
    anew = load_config("anew.yaml").init_from
    assert (anew.checkpoint, anew.load_optimizer) == ("converted", False)
    assert main(["import-args", "newer", "--model", "converted", "--output", "newer.yaml"]) == 2
    assert "--model converted: is of iteration 20, and what is to be continued of 30" in capsys.readouterr().err
