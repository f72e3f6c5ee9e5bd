#!/usr/bin/env bash
# tools/launch.sh PROCESSES PROGRAM [arguments]
# Starts several processes for dist_train.sh and dist_test.sh. NNODES, NODE_RANK,
# MASTER_ADDR and PORT in the environment mean what they mean in MMDetection.
set -euo pipefail
processes=$1
python=${PYTHON:-python}
root=$(cd "$(dirname "$0")/.." && pwd)
nnodes=${NNODES:-1}
if [ -z "${PORT:-}" ]; then
    PORT=29500
    # Several nodes must agree on the port. A single node takes a free one.
    if [ "$nnodes" = 1 ]; then
        PORT=$("$python" -c 'import socket
s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
    fi
fi
# In a checkout, Python must find the package. A wheel has installed it already.
if [ -d "$root/pws_mmdet" ]; then
    export PYTHONPATH="$root${PYTHONPATH:+:$PYTHONPATH}"
fi
exec "$python" "$root/tools/launch.py" \
    --nnodes="$nnodes" \
    --node_rank="${NODE_RANK:-0}" \
    --master_addr="${MASTER_ADDR:-127.0.0.1}" \
    --master_port="$PORT" \
    --nproc_per_node="$processes" \
    "${@:2}"
