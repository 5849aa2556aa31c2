"""Shell scripts that call pretrain_gpt.py are read as bash would run them, and nothing of them is run."""

import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from megatron_cpt.config.errors import BadInput
from megatron_cpt.planning.launch_script import read_script

SCRIPT = r"""#!/bin/bash
#SBATCH --nodes=2
export CUDA_DEVICE_MAX_CONNECTIONS=1   # a comment
GPUS=8; NODES=2
WORLD=$(($GPUS * $NODES))
CHECKPOINT=${1:-"checkpoints/base"}
TP=4
DTYPE="fp8"

MODEL_ARGS=(
    --num-layers 32    # layers
    # --hidden-size 1
    --seq-length 8192
    --data-path "0.7 medicine 0.3 general"
)
EXTRA="--lr 3e-5 \
  --bf16"
if [[ "$DTYPE" == "fp8" ]] && [ $WORLD -gt 8 ]; then
    MODEL_ARGS+=("--fp8-format hybrid")
elif [ -z "$DTYPE" ]; then
    MODEL_ARGS+=(--never)
else
    MODEL_ARGS+=(--fp16)
fi
if [ "$TP" != 4 ]; then EXTRA="$EXTRA --wrong"; fi
if command -v nvidia-smi; then
    echo found
fi
torchrun --nproc_per_node $GPUS --nnodes=$NODES pretrain_gpt.py \
    ${MODEL_ARGS[@]} $EXTRA \
    --tensor-model-parallel-size ${TP} --save "$CHECKPOINT" --train-samples $((WORLD*100)) 2>&1 | tee log.txt
"""


def test_variables_arrays_and_branches() -> None:
    launch = read_script(SCRIPT, "pretrain.sh")
    assert launch.ranks == 16
    assert " ".join(launch.arguments) == (
        "--num-layers 32 --seq-length 8192 --data-path 0.7 medicine 0.3 general --fp8-format hybrid --lr 3e-5 --bf16 "
        "--tensor-model-parallel-size 4 --save checkpoints/base --train-samples 1600"
    )
    assert launch.unread == ("left out, for it cannot be decided here: if command -v nvidia-smi",)


def test_parameters_of_the_script() -> None:
    assert "mine" in read_script(SCRIPT, "x", ["mine"]).arguments
    needy = "torchrun pretrain_gpt.py --save $1 --load ${2}\n"
    with pytest.raises(BadInput, match=r"\$1, \$2"):
        read_script(needy, "x")
    assert read_script(needy, "x", ["a", "b"]).arguments == ("--save", "a", "--load", "b")


def test_a_call_in_a_variable_for_srun() -> None:
    text = (
        'options="--lr 1e-4 --bf16"\nrun_cmd="python -u /opt/megatron/pretrain_gpt.py ${options}"\nsrun bash -c "x"\n'
    )
    assert read_script(text, "x").arguments == ("--lr", "1e-4", "--bf16")


def test_a_file_with_arguments_alone() -> None:
    assert read_script("--lr 1e-4  # rate\n--bf16\n", "x").arguments == ("--lr", "1e-4", "--bf16")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("echo hello\n", "no call"),
        ("python pretrain_gpt.py --a\npython pretrain_gpt.py --b\n", "2 calls"),
        ('torchrun pretrain_gpt.py --save "open\n', "cannot be read"),
        ("if [ $A == b ]; then\ntorchrun pretrain_gpt.py --a\n", "without `fi`"),
        ("", "no call"),
    ],
)
def test_what_cannot_be_read_is_one_message(text: str, said: str) -> None:
    with pytest.raises(BadInput, match=said):
        read_script(text, "pretrain.sh")


def test_nothing_is_run(tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    text = f"X=$(touch {marker})\nY=`touch {marker}`\ntouch {marker}\ntorchrun pretrain_gpt.py --save $X\n"
    read_script(text, "x")
    assert not marker.exists()


NAMES = st.sampled_from(["A", "B", "LONG_NAME"])
WORDS = st.sampled_from(["--lr 1e-4", "--bf16", "x", "--data-path '0.5 a 0.5 b'", "--save runs/a.b-c_d"])
LINES = st.one_of(
    st.builds('{}="{}"'.format, NAMES, WORDS.filter(lambda word: "'" not in word)),
    st.builds("{}=({} {})".format, st.sampled_from(["R", "S"]), WORDS, WORDS),
    st.builds("{}+=({})".format, st.sampled_from(["R", "S"]), WORDS),
    st.builds("{0}=${{{1}:-{2}}}".format, NAMES, NAMES, st.sampled_from(["1", "--c", ""])),
    st.builds('if [ "${}" == "--bf16" ]; then B="--yes"; else B="--no"; fi'.format, NAMES),
    st.builds("N=$((2 * {} + {}))".format, st.integers(0, 9), st.integers(0, 9)),
    st.just("# a comment with ' and (\n"),
)


@given(st.lists(LINES, max_size=8))
def test_scripts_are_read_as_bash_reads_them(tmp_path_factory: pytest.TempPathFactory, lines: list[str]) -> None:
    call = "pretrain_gpt.py --start $A ${B} ${R[@]} ${S[@]} $LONG_NAME $N"
    text = "\n".join([*lines, f"python {call}", ""])
    shown = "\n".join(["python() { printf '%s\\n' \"$@\"; }", *lines, f"python {call}", ""])
    done = subprocess.run(
        ["bash", "-c", shown], capture_output=True, text=True, timeout=20, env={"PATH": "/bin:/usr/bin"}
    )
    _, *expected = done.stdout.splitlines()
    found = list(read_script(text, "x").arguments)
    # bash keeps the blanks of an array's quoted word only where `"${R[@]}"` is quoted, which scripts often forget.
    assert " ".join(found).split() == " ".join(expected).replace("'", "").split()


def test_a_number_sign_inside_a_word_is_no_comment_and_quotes_keep_blanks() -> None:
    text = """
    A=(--save "ckpt/my run")  # a comment
    B='x y'
    python pretrain_gpt.py "${A[@]}" --load /ckpt/run#3 --tag "$B" --lr 5e-5 # the end
    """
    assert read_script(text, "x.sh").arguments == (
        *("--save", "ckpt/my run", "--load", "/ckpt/run#3"),
        *("--tag", "x y", "--lr", "5e-5"),
    )


def test_what_a_script_takes_from_elsewhere_is_told() -> None:
    text = """
    source ./env.sh
    f() { WD=0.3; }
    mkdir $ELSEWHERE
    python pretrain_gpt.py $OPTIM_ARGS --save $ROOT/run --seed ${SEED:-1}
    """
    assert read_script(text, "x.sh").unread == (
        "not read: ./env.sh, which the script reads",
        "read where it stands, not where it is called: the function f",
        "not set in the script, and taken as empty: $OPTIM_ARGS, $ROOT",
    )
