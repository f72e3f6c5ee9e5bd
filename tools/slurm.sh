#!/usr/bin/env bash
# tools/slurm.sh PARTITION JOB_NAME PROGRAM [arguments]
# Starts a Slurm job for slurm_train.sh and slurm_test.sh. GPUS, GPUS_PER_NODE,
# CPUS_PER_TASK and SRUN_ARGS in the environment mean what they mean in MMDetection.
set -euo pipefail
GPUS_PER_NODE=${GPUS_PER_NODE:-8}
root=$(cd "$(dirname "$0")/.." && pwd)
# In a checkout, Python must find the package. A wheel has installed it already.
if [ -d "$root/pws_mmdet" ]; then
    export PYTHONPATH="$root${PYTHONPATH:+:$PYTHONPATH}"
fi
# No quotes around SRUN_ARGS: it holds several arguments.
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
