#!/bin/bash
# The whole job as a chain of Slurm jobs, each of which waits for those that it needs: documents to an evaluated model.
#
#     bash examples/slurm/chain.sh MODEL NEW_TEXT GENERAL_TEXT RUN.yaml [TASK...]
#
# MODEL is a Hugging Face folder; NEW_TEXT and GENERAL_TEXT are folders of documents; TASK is one of
# lm-evaluation-harness. RUN.yaml trains on data/new-best.selection.json and data/general, evaluates
# data/new.validation and data/general.validation, and has `checkpoint: {export_hf: {end: true}}`.
# Everything is on a shared file system. Partition and account: SBATCH_PARTITION and SBATCH_ACCOUNT in the environment.
set -euo pipefail
model=$1 new=$2 general=$3 run=$4
tasks=("${@:5}")
parts=${PARTS:-16} # jobs of an array that prepares
best=${BEST:-20%}  # of the new text
here=$(dirname "$0")

# submit NAME NEEDED COMMAND [SBATCH_OPTION...]: prints the number of the job.
submit() {
  sbatch --parsable --job-name="$1" --output="$1-%j.log" ${2:+"--dependency=afterok:$2" --kill-on-invalid-dep=yes} \
    "${@:4}" --wrap="$3"
}

# The words of a command, quoted for the shell of the job.
words() {
  printf '%q ' "$@"
}

# prepare NAME TEXT: an array that tokenizes, and a job that joins its parts; prints the number of the latter.
prepare() {
  local array
  # shellcheck disable=SC2016 # the job expands it
  array=$(submit "prepare-$1" "" "$(words megatron-cpt prepare "$2" --tokenizer "$model" --output "data/$1" \
    --holdout "${HOLDOUT:-0.5%}" --quiet)"'--shard $SLURM_ARRAY_TASK_ID/'"$parts" --array="1-$parts" --cpus-per-task="${CORES:-16}")
  submit "merge-$1" "$array" "$(words megatron-cpt merge "data/$1")"
}

general_ready=$(prepare general "$general")
new_ready=$(prepare new "$new")
chosen=$(submit choose "$general_ready:$new_ready" "$(words megatron-cpt score data/new --by ngram \
  --reference data/general --quiet) && $(words megatron-cpt select data/new --share "$best" --by ngram --keep lowest \
  --output data/new-best)" --cpus-per-task="${CORES:-16}")
planned=$(submit plan "$chosen" "$(words megatron-cpt plan "$run" --nproc "${RANKS:-16}")")
trained=$(sbatch --parsable --dependency="afterok:$planned" --kill-on-invalid-dep=yes "$here/train.sbatch" "$run")
folder=$(python -c 'import sys, yaml; print(yaml.safe_load(open(sys.argv[1]))["run"]["folder"])' "$run")
submit report "$trained" "$(words megatron-cpt report "$folder")"
if [ ${#tasks[@]} -gt 0 ]; then
  submit evaluate "$trained" "$(words megatron-cpt evaluate "$folder/hf" --output "$folder/tasks.json" \
    --lm-eval "${tasks[@]}")" --gpus=1
fi
