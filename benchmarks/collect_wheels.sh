#!/usr/bin/env bash
#
# Fetch the packages that benchmarks/gpu.sh needs on a machine without a network:
#
#   benchmarks/collect_wheels.sh WHEELS [PYTHON] [MMCV_WHEEL]
#
# WHEELS      the folder to fill
# PYTHON      the Python of that machine, 3.12 by default; Linux on x86-64
# MMCV_WHEEL  MMCV, compiled for that Python, its torch and its GPU; by default, gpu.sh
#             compiles the source that this script fetches
#
# That machine must have torch, torchvision, numpy, scipy, matplotlib, OpenCV, pillow,
# pyyaml, rich, tqdm, packaging and pytest.

set -euo pipefail

if [[ $# -lt 1 || $# -gt 3 || $1 == -* ]]; then
    sed -n '3,15s/^# \{0,1\}//p' "$0" >&2
    exit 2
fi
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
wheels=$1 version=${2:-3.12} mmcv=${3:-}
platforms=()
for glibc in 2_28 2_27 2_24 2_17; do
    platforms+=(--platform "manylinux_${glibc}_x86_64")
done
platforms+=(--platform manylinux2014_x86_64 --platform manylinux1_x86_64)
pip() { "${PYTHON:-python3}" -m pip --disable-pip-version-check "$@"; }

mkdir -p "$wheels"
pip download -q --no-deps --only-binary=:all: --python-version "$version" \
    --implementation cp "${platforms[@]}" -d "$wheels" -r "$here/gpu_packages.txt"
if [[ -n $mmcv ]]; then
    cp "$mmcv" "$wheels"
fi
if ! compgen -G "$wheels/mmcv-*.tar.gz" >/dev/null; then
    work=$(mktemp -d) # MMCV's setup.py imports a module that later setuptools lack
    trap 'rm -rf "$work"' EXIT
    pip install -q --no-deps --target "$work" "$wheels"/setuptools-*.whl
    PYTHONPATH=$work pip download -q --no-deps --no-build-isolation --no-binary mmcv \
        -d "$wheels" mmcv==2.1.0
fi
du -sh "$wheels"
