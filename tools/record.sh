#!/usr/bin/env bash
# Make recorded runs on a machine with GPUs: one queue a GPU, in the background, in OUT.
#
#   tools/record.sh OUT 'cifar10_ddpm --checkpoint' 'cifar10_vae; cifar10_hvae'
#
# The queues go on when the shell is gone. OUT/NAME gets what results/NAME keeps of a record, and
# OUT/NAME.log what the run says. A run that fails is tried once more: it goes on from its checkpoint.
set -euo pipefail
out=$(realpath -m "$1")
shift
mkdir -p "$out"
export out
gpu=0
for queue in "$@"; do
  CUDA_VISIBLE_DEVICES=$gpu setsid bash -c '
    IFS=";" read -ra runs <<< "$0"
    for run in "${runs[@]}"; do
      read -ra words <<< "$run"
      for attempt in 1 2; do
        "${PYTHON:-python3}" -m tutorial_lib.recipes "${words[@]}" --out "$out/${words[0]}" \
          >> "$out/${words[0]}.log" 2>&1 && break
      done
    done
  ' "$queue" > "$out/queue_$gpu.log" 2>&1 &
  gpu=$((gpu + 1))
done
