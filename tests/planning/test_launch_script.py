"""Shell scripts that call pretrain_gpt.py are read as bash would run them, and nothing of them is run."""

import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from megatron_cpt.config.errors import BadInput
from megatron_cpt.planning.launch_script import read_script
from tests.planning.shell_scripts import SCRIPTS

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
    assert launch.unread == (), "no argument depends on the condition that cannot be evaluated"


def test_parameters_of_the_script() -> None:
    assert "mine" in read_script(SCRIPT, "x", ["mine"]).arguments
    needy = "torchrun pretrain_gpt.py --save $1 --load ${2}\n"
    with pytest.raises(BadInput, match=r"\$1, \$2 \(line 1\)"):
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
        "line 2: not read: ./env.sh, which the script reads",
        "not set in the script, and taken as empty: $OPTIM_ARGS (line 5), $ROOT (line 5)",
    )


@pytest.mark.parametrize("script", SCRIPTS)
def test_arguments_are_those_that_bash_passes_on(script: str) -> None:
    shown = f"python() {{ printf '%s\\0' \"$@\"; }}\nexport -f python\n{script}"
    environment = {"PATH": "/bin:/usr/bin"}
    done = subprocess.run(
        ["bash", "-c", shown], capture_output=True, text=True, timeout=20, env=environment, stdin=subprocess.DEVNULL
    )
    _, _, passed_on = done.stdout.partition("pretrain_gpt.py\0")
    assert list(read_script(script, "x.sh").arguments) == passed_on.split("\0")[:-1]


@pytest.mark.parametrize(
    ("line", "passed_on", "said"),
    [
        (
            "[ -f old/latest ] && X=2",
            "1",
            "line 2: `[ -f old/latest ]` cannot be evaluated here, and was taken as false",
        ),
        ("[ -f old/latest ] && X=2 || X=3", "3", "otherwise it would set X"),
        ("[[ ! -d old ]] || X=2", "2", "taken as false"),
        ("if grep -q a b; then X=2; else X=3; fi", "3", "`grep -q a b` cannot be evaluated"),
        ("if ! diff a b; then source ./x.sh; fi", "1", "otherwise it would set what ./x.sh sets"),
        ("python prepare.py || X=2", "1", "taken as true; otherwise it would set X"),
        ("case $(hostname) in a*) X=2 ;; *) X=3 ;; esac", "3", "`case $(hostname)` cannot be evaluated here"),
        ("[ -f data ] || { echo missing; exit 1; }", "1", ""),
        ("if [ ! -f data ]; then exit 1; fi", "1", ""),
        ("cd /there || exit", "1", ""),
        ("[ $SIZE -gt 3 ] && X=2", "1", "taken as empty: $SIZE (line 2)"),
        ('[ "$SIZE" = 70b ] && X=2', "1", "taken as empty: $SIZE (line 2)"),
        ("while read x; do Y=$x; done < list", "1", "line 2: the loop `while read x; do Y=$x; done < list` was not"),
    ],
)
def test_what_a_condition_that_is_not_known_leads_to_is_told(line: str, passed_on: str, said: str) -> None:
    launch = read_script(f"X=1\n{line}\ntorchrun pretrain_gpt.py --x $X\n", "x.sh")
    assert launch.arguments == ("--x", passed_on)
    assert (said in " ".join(launch.unread)) if said else not launch.unread, launch.unread


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        ("X=$(python3 -c 'print(1)')", "line 1: `$(python3 -c 'print(1)')` is not run"),
        ("X=`date`", "line 1: ``date`` is not run"),
        ("X='$Y'", "line 4: `$Y` stands in quotes that keep it as it is"),
        ("Y=A; X=${Y^^[a]}", "line 1: `${Y^^[a]}` is not understood"),
        ("X=$((1 + $RANKS))", "line 1: `$((1 + $RANKS))` cannot be worked out"),
        ("X=${RANDOM}", "line 1: `${RANDOM}` is known only when the script runs"),
        ("\nread X", "line 2: `$X` is set by `read`, which is not run"),
        ("for f in data/*.bin; do X=$f; done", "line 1: `$X` is set in the loop of line 1, which cannot be unrolled"),
        ("for f in $(ls); do\nX=$f; done", "`$(ls)` is not run"),
        ("X=0; while [ -f x ]; do\nX=1; done", "its condition cannot be evaluated here"),
        ("X=0; while true; do ((X++)); done", "it has more than 1000 turns"),
    ],
)
def test_what_is_not_known_is_no_value(lines: str, said: str) -> None:
    lines += "\n" * (3 - lines.count("\n"))
    launch = read_script(f"{lines}torchrun pretrain_gpt.py --x $X --y 1\n", "x.sh")
    [(word, why)] = launch.unknown.items()
    assert said in why and launch.arguments == ("--x", word, "--y", "1")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("CKPT=${1:?a checkpoint}\ntorchrun pretrain_gpt.py --load $CKPT\n", r"\$1 \(line 1\). It says: a checkpoint"),
        ("torchrun pretrain_gpt.py --load ${CKPT:?is needed}\n", r"line 1 of x.sh: needs \$CKPT .*: is needed"),
        ("[ $# -lt 1 ] && { echo usage; exit 1; }\ntorchrun pretrain_gpt.py --a $1\n", "line 1: `exit 1` ends it"),
        ("for lr in 1 2; do\ntorchrun pretrain_gpt.py --lr $lr\ndone\n", r"2 calls .*\(lines 2, 2\)"),
        ("bash inner.sh 8b\n", r"it starts inner.sh \(line 1\)"),
        ("f() { f; }\nf\ntorchrun pretrain_gpt.py --a 1\n", "line 1 of the script: leads back to itself"),
        ("X=a\nfor i in {1..60}; do X=$X$X; done\ntorchrun pretrain_gpt.py --a $X\n", "line 2 .* too long"),
        ("case a in a) X=1 ;& b) X=2 ;; esac\ntorchrun pretrain_gpt.py --a $X\n", "leads into the next pattern"),
        ("((((" * 3000, "cannot be read"),
    ],
)
def test_scripts_without_a_call_that_can_be_read(text: str, said: str) -> None:
    with pytest.raises(BadInput, match=said):
        read_script(text, "x.sh")


@pytest.mark.parametrize(
    "line",
    [
        'srun -N2 bash -c "torchrun --nproc_per_node 4 pretrain_gpt.py ${ARGS[*]}"',
        "mpirun -np 8 sh -c 'torchrun --nproc_per_node 4 pretrain_gpt.py $TEXT'",
        'nohup env A=1 bash -lc "cd /x; exec torchrun --nproc_per_node=4 pretrain_gpt.py $TEXT > log 2>&1" &',
        'ssh $HOST "cd /x && torchrun --nproc_per_node=4 pretrain_gpt.py $TEXT"',
        'sbatch --wrap="torchrun --nproc_per_node 4 pretrain_gpt.py $TEXT"',
        'CMD="torchrun --nproc_per_node 4 pretrain_gpt.py $TEXT"; eval "$CMD"',
        "sbatch <<EOF\n#!/bin/bash\ntorchrun --nproc_per_node 4 pretrain_gpt.py $TEXT\nEOF",
        "if nvidia-smi; then torchrun --nproc_per_node 4 pretrain_gpt.py $TEXT; fi",
        "while true; do torchrun --nproc_per_node 4 pretrain_gpt.py $TEXT && break; sleep 9; done",
        'run() { echo "$@"; "$@"; }; run torchrun --nproc_per_node 4 pretrain_gpt.py $TEXT',
        "for host in $(cat hosts); do ssh $host torchrun --nproc_per_node 4 pretrain_gpt.py $TEXT; done",
    ],
)
def test_calls_that_another_shell_or_program_makes(line: str) -> None:
    launch = read_script(f'ARGS=(--lr 3e-5 --bf16)\nexport TEXT="${{ARGS[*]}}"\n{line}\n', "x.sh")
    assert (launch.arguments, launch.ranks) == (("--lr", "3e-5", "--bf16"), 4)


def test_a_variable_that_another_shell_does_not_have_is_told() -> None:
    launch = read_script("ARGS='--lr 1'\nsrun bash -c 'torchrun pretrain_gpt.py --bf16 $ARGS'\n", "x.sh")
    assert launch.arguments == ("--bf16",)
    assert launch.unread == ("set and not exported, and so empty for the shell that the script starts: $ARGS (line 2)",)


def test_a_line_that_belongs_to_no_command_is_told() -> None:
    launch = read_script("torchrun pretrain_gpt.py --lr 1 \\\n # --wd 1 \\\n --bf16 \\\n", "x.sh")
    assert launch.arguments == ("--lr", "1")
    assert launch.unread == ("line 3: `--bf16` belongs to no command, for the line before does not go on",)


@given(st.data())
def test_scripts_that_are_broken_are_one_message_or_read(data: st.DataObject) -> None:
    script = data.draw(st.sampled_from([*SCRIPTS, SCRIPT]))
    signs = st.sampled_from(
        ["", '"', "'", "$", "${", "$(", ")", "}", "`", "\\", "\n", "<<E\n", "done", "fi", "\x02", "((", ";"]
    )
    for _ in range(data.draw(st.integers(1, 3))):
        place, length = data.draw(st.integers(0, len(script))), data.draw(st.integers(0, 5))
        script = script[:place] + data.draw(signs) + script[place + length :]
    try:
        launch = read_script(script, "x.sh")
    except BadInput:
        return
    for word in launch.arguments:
        assert word in launch.unknown or not set("$`\x02\x03\x04") & set(word)
