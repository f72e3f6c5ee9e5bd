#!/usr/bin/env bash
# tools/dist_train.sh CONFIG GPUS [flags of tools/train.py]
# On a machine without a GPU, GPUS is the number of CPU processes.
set -euo pipefail
if [ $# -lt 2 ]; then
    echo "usage: $0 CONFIG GPUS [flags of train.py]" >&2
    exit 2
fi
here=$(cd "$(dirname "$0")" && pwd)
exec "$here/launch.sh" "$2" "$here/train.py" "$1" --launcher pytorch "${@:3}"
