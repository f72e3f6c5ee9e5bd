#!/usr/bin/env bash
# tools/dist_test.sh CONFIG CHECKPOINT GPUS [flags of tools/test.py]
# On a machine without a GPU, GPUS is the number of CPU processes.
set -euo pipefail
if [ $# -lt 3 ]; then
    echo "usage: $0 CONFIG CHECKPOINT GPUS [flags of test.py]" >&2
    exit 2
fi
here=$(cd "$(dirname "$0")" && pwd)
exec "$here/launch.sh" "$3" "$here/test.py" "$1" "$2" --launcher pytorch "${@:4}"
