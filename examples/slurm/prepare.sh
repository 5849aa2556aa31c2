#!/bin/bash
# A large corpus as two arrays of Slurm jobs: one tokenizes it in shards, the other joins them, each task one part.
#
#     bash examples/slurm/prepare.sh SHARDS PARTS PREFIX CORPUS... --tokenizer PATH [OPTION...]
#
# What follows PREFIX are the words of `megatron-cpt prepare`. PREFIX names the parts together in every configuration.
# Corpus and PREFIX are on a shared file system. Partition and account: SBATCH_PARTITION and SBATCH_ACCOUNT.
set -euo pipefail
shards=$1 parts=$2 prefix=$3
corpus=("${@:4}")

# The words of a command, quoted for the shell of the job.
words() {
  printf '%q ' "$@"
}

# shellcheck disable=SC2016 # the job expands it
tokenized=$(sbatch --parsable --job-name=tokenize --output=tokenize-%A-%a.log --array="1-$shards" \
  --cpus-per-task="${CORES:-16}" --wrap="$(words megatron-cpt prepare "${corpus[@]}" --output "$prefix" --quiet)"'--shard $SLURM_ARRAY_TASK_ID/'"$shards")
# The first task to start decides which documents are left out; the others wait for it.
# shellcheck disable=SC2016
sbatch --parsable --job-name=join --output=join-%A-%a.log --array="1-$parts" --dependency="afterok:$tokenized" \
  --kill-on-invalid-dep=yes --wrap="$(words megatron-cpt merge "$prefix" --parts "$parts")"'--part $SLURM_ARRAY_TASK_ID'
