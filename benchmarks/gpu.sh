#!/usr/bin/env bash
#
# Test and measure pws_mmdet on a machine with an NVIDIA GPU, in at most 8 minutes:
#
#   benchmarks/gpu.sh [--cpu] [--filters] [--data CIFAR10.zip] OUT [WHEELS]
#
# OUT         folder for the results, gpu.jsonl and gpu.md, and for the logs
# WHEELS      packages from benchmarks/collect_wheels.sh, for a machine without a
#             network; by default, missing packages come from the package index
# --data ZIP  images of CIFAR-10, train/CLASS/*.jpg and test/CLASS/*.jpg; without
#             them nothing is trained on CIFAR-10
# --filters   only the kernel that computes filters: its tests, and the training of a
#             ResNet-50 with and without it; two minutes
# --cpu       run everything on a CPU, at a toy size
#
# PYTHON=python3.12 names an interpreter that has torch and pytest. Packages are installed
# into a temporary folder, not into that Python. The tests and the trainings on CIFAR-10
# run side by side, because they are not measurements of speed. Then each network is
# measured alone. Every part has its own process and time limit. The results of a part
# are kept if it or a later part fails.

set -uo pipefail

usage() { sed -n '3,22s/^# \{0,1\}//p' "$0" >&2; exit 2; }
toy=() data= filters=
while [[ ${1:-} == -* ]]; do
    case $1 in
    --cpu) toy=(--toy) ;;
    --filters) filters=yes ;;
    --data) data=${2:?--data needs a zip file}; shift ;;
    *) usage ;;
    esac
    shift
done
[[ $# -ge 1 && $# -le 2 ]] || usage

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
mkdir -p "$1"
out=$(cd "$1" && pwd) wheels=
if [[ -n ${2:-} ]]; then
    wheels=$(cd "$2" && pwd) || exit 2
fi
if [[ -n $data ]]; then
    [[ -f $data ]] || { echo "there is no file $data" >&2; exit 2; }
    data=$(realpath "$data")
fi
python=${PYTHON:-python3}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
site=$work/site parts=$work/parts
mkdir -p "$site" "$parts"
export PYTHONPATH=$site:$root PYTHONUNBUFFERED=1 PYTHONWARNINGS=ignore
began=$SECONDS
say() { printf 'gpu: %3d s: %s\n' $((SECONDS - began)) "$*"; }
py() { "$python" "$@"; }
pip() { py -m pip --disable-pip-version-check install -q --no-deps --no-compile \
    --no-warn-script-location --upgrade --target "$site" "$@"; }

py -c 'import torch' || { echo "$python has no torch" >&2; exit 2; }
if [[ ${#toy[@]} -eq 0 ]]; then
    py -c 'import torch, sys; sys.exit(not torch.cuda.is_available())' ||
        { echo 'torch sees no GPU here; --cpu walks through all of it' >&2; exit 2; }
fi

# Whether MMCV can be imported with its operators, and they run on this GPU
mmcv_works() {
    py - <<'EOF'
import sys, torch
from mmcv.ops import nms
if torch.cuda.is_available():
    boxes = torch.tensor([[0.0, 0, 9, 9], [0, 0, 9, 8]], device='cuda')
    sys.exit(len(nms(boxes, torch.ones(2, device='cuda'), 0.5)[1]) != 1)
EOF
}

# Install an MMCV whose operators raise an error when they are called. Layers and
# backbones work with it.
install_mmcv_without_operators() {
    rm -rf "$site"/mmcv*
    MMCV_WITH_OPS=0 pip --no-build-isolation "$1" || return
    cat >"$site/mmcv/_ext.py" <<'EOF'
def __getattr__(name):
    if name.startswith('__'):
        raise AttributeError(name)

    def operator(*args, **kwargs):
        raise RuntimeError(f'the operator {name} of MMCV is not compiled here')

    return operator
EOF
}

install_mmcv() {
    local wheel archive
    for wheel in "$wheels"/mmcv-*.whl; do
        [[ -f $wheel ]] && pip "$wheel" && mmcv_works && mmcv='compiled before' && return
    done
    archive=$(compgen -G "$wheels/mmcv-*.tar.gz" | head -1)
    if [[ -z $archive ]]; then
        py -m pip download -q --no-deps --no-build-isolation --no-binary mmcv \
            -d "$work" mmcv==2.1.0
        archive=$(compgen -G "$work/mmcv-*.tar.gz" | head -1)
    fi
    [[ -n $archive ]] || return
    rm -rf "$site"/mmcv*
    if [[ -n $filters ]]; then # it needs no operator
        install_mmcv_without_operators "$archive" && mmcv='without operators'
        return
    fi
    cpu=()
    [[ ${#toy[@]} -eq 0 ]] || cpu=(--cpu)
    if timeout 150 nice "$python" "$root/benchmarks/build_mmcv.py" "${cpu[@]}" \
        "$archive" "$work"; then
        pip "$work"/mmcv-*.whl && mmcv_works && mmcv='compiled here' && return
    fi
    install_mmcv_without_operators "$archive" && mmcv='without operators'
}

mmcv=found
{
    if [[ -n $wheels ]]; then
        others=()
        for wheel in "$wheels"/*.whl; do
            [[ ${wheel##*/} == mmcv-* ]] || others+=("$wheel")
        done
        pip --no-index "${others[@]}"
    elif ! py -c 'import mmengine, mmdet, pycocotools'; then
        pip -r "$root/benchmarks/gpu_packages.txt"
    fi
    mmcv_works || install_mmcv
    py -c 'import pws_mmdet'
} >"$out/install.log" 2>&1 || { tail -20 "$out/install.log"; say 'not installed'; exit 1; }
say "installed; MMCV: $mmcv"

# report: write gpu.jsonl and gpu.md with all parts so far
report() {
    py "$root/benchmarks/gpu.py" report $(compgen -G "$parts/*.json" | sort) --out "$out/gpu.jsonl" \
        --markdown "$out/gpu.md" --notes "MMCV=$mmcv" "tests=${tests:-none}" \
        "seconds=$((SECONDS - began))" >/dev/null
}

# part SECONDS LOG ARGUMENTS: run a part of gpu.py. It may fail.
part() {
    local limit=$1 log=$2
    shift 2
    timeout -k 5 $((limit + spare)) "$python" "$root/benchmarks/gpu.py" "$@" \
        --budget "$limit" "${toy[@]}" >>"$out/$log" 2>&1 ||
        say "${*:1:2}: failed or cut off ($?), see $log"
}

limits=(100 55 75 125) # CIFAR-10, ResNet-50, SSD, Mask R-CNN, in seconds
spare=25                # seconds to start, and to end the running step
export PWS_GPU_TESTS_ON=cuda
if [[ ${#toy[@]} -gt 0 ]]; then
    limits=(2 900 900 900) spare=300
    export PWS_GPU_TESTS_ON=cpu OMP_NUM_THREADS=1
    chosen=(-k 'layers and PWS-torch or distributed and 1')
fi

if [[ -n $filters ]]; then
    parts=$out/parts # what is there comes back even if this run is cut off
    mkdir -p "$parts"
    interpret=() jobs=()
    [[ ${#toy[@]} -eq 0 ]] || interpret=(env TRITON_INTERPRET=1)
    if [[ ${#toy[@]} -eq 0 ]] && py -c 'import xdist' 2>/dev/null; then
        jobs=(-n 6) # most of their time is that of Triton's compiler
    fi
    kernel_tests() {
        (cd "$root" && timeout -s INT -k 5 "$@" "${jobs[@]}" -m gpu -q \
            -p no:cacheprovider) 2>&1 |
            tee -a "$out/tests.log"
    }
    kernel_tests $((20 + spare)) "${interpret[@]}" "$python" -m pytest \
        tests/gpu/test_gpu_filters.py
    tests=$(grep -E '[0-9]+ (passed|failed|error)' "$out/tests.log" | tail -1)
    say 'the kernel is tested'
    report
    part 60 speed.log speed ResNet-50 --out "$parts/filters.json" --training \
        --kinds plain 'plain, again' PWS 'PWS, group norm' BN GN
    say 'the kernel is measured'
    report
    cat "$out/speed.log" "$out/gpu.md"
    kernel_tests $((20 + spare)) "$python" -m pytest tests/gpu/test_gpu_layers.py \
        -k 'PWS and not compiled or shared or graph or synchronization'
    exit
fi

if [[ -n $data ]]; then
    for kind in PWS BN GN; do
        part "${limits[0]}" "cifar.log" cifar "$kind" --data "$data" \
            --out "$parts/cifar_$kind.json" &
    done
else
    say 'CIFAR-10 is skipped: --data names its images'
fi
# After an interrupt (INT), pytest still reports its results.
(cd "$root" && timeout -s INT -k 10 $((limits[0] + spare + 15)) "$python" -m pytest tests/gpu \
    -m gpu -v -p no:cacheprovider "${chosen[@]:+${chosen[@]}}") >"$out/tests.log" 2>&1
tests=$(grep -E '[0-9]+ (passed|failed|error|skipped|deselected)' "$out/tests.log" |
    tail -1 | tr -d =)
say "tests: $tests"
wait
report
i=0
for name in ResNet-50 VGG-16-SSD320 'Mask R-CNN'; do
    ((i++))
    part "${limits[i]}" speed.log speed "$name" --out "$parts/speed_$i.json"
    report
    say "$name is done"
done
report
cat "$out/gpu.md"
