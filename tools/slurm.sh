#!/usr/bin/env bash
# tools/slurm.sh PARTITION JOB_NAME PROGRAM [arguments]: what slurm_train.sh and
# slurm_test.sh share. GPUS, GPUS_PER_NODE, CPUS_PER_TASK and SRUN_ARGS are
# MMDetection's.
set -euo pipefail
GPUS_PER_NODE=${GPUS_PER_NODE:-8}
root=$(cd "$(dirname "$0")/.." && pwd)
# A wheel's tools lie inside the installed package, and need no path to it.
if [ -d "$root/pws_mmdet" ]; then
    export PYTHONPATH="$root${PYTHONPATH:+:$PYTHONPATH}"
fi
# SRUN_ARGS is a list of arguments: it must be split into words
# shellcheck disable=SC2086
exec srun -p "$1" \
    --job-name="$2" \
    --gres="gpu:$GPUS_PER_NODE" \
    --ntasks="${GPUS:-8}" \
    --ntasks-per-node="$GPUS_PER_NODE" \
    --cpus-per-task="${CPUS_PER_TASK:-5}" \
    --kill-on-bad-exit=1 \
    ${SRUN_ARGS:-} \
    "${PYTHON:-python}" -u "${@:3}" --launcher=slurm
