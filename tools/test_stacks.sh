#!/usr/bin/env bash
#
# Test pws_mmdet with several versions of torch and MMDetection. Each stack of versions
# gets a virtual environment in the cache. It runs the quick tests of layers, models,
# conversions and checkpoints, then tools/train.py for one epoch of two images, then
# tools/test.py.
#
#   tools/test_stacks.sh [NAME...]    by default all stacks of the table below
#
# The variables of tools/install.sh (PWS_TORCH_INDEX, MAX_JOBS) work here, too.

set -euo pipefail

# name       first Python that is found   torch            mmcv, mmengine, mmdet
table='
torch2.1     3.11 3.10                    torch==2.1.2     stock
torch2.13    3.11 3.12 3.10               torch==2.13.0    stock
forks        3.13 3.12 3.11 3.10          torch==2.13.0    forks
newest       3.12 3.11 3.10               torch            stock
'
tests=(
    tests/layers tests/models tests/checkpoint tests/convert
    tests/engine/hooks/test_checkpoint_hook.py tests/test_compat.py
)

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
stacks=${XDG_CACHE_HOME:-$HOME/.cache}/pws_mmdet/stacks
config=$root/configs/mini/ssd96_vgg16_pws_digits.py

say() { printf 'test_stacks: %s\n' "$*"; }
fail() { say "$@" >&2; exit 1; }

# find_python VERSION...: print the interpreter of the first installed version.
find_python() {
    local candidate version
    for version; do
        for candidate in "python$version" python3 \
            "${PYENV_ROOT:-$HOME/.pyenv}/versions/$version".*/bin/python; do
            if "$candidate" -c "import sys, ensurepip
assert sys.version_info[:2] == (${version/./, })" 2>/dev/null; then
                type -P "$candidate"
                return
            fi
        done
    done
    return 1
}

# install NAME VERSIONS TORCH KIND
install() {
    local python
    python=$(find_python $2) || fail "$1 needs Python ${2// / or }"
    # The newest torch of the last time may not be the newest any more.
    if [[ $3 != *==* && -x $stacks/$1/bin/python ]]; then
        "$stacks/$1/bin/python" -m pip install -q --upgrade "$3"
    fi
    PWS_VENV=$stacks/$1 PWS_NO_VENV='' PYTHON=$python PWS_TORCH=$3 \
        PWS_FORKS=$([[ $4 != forks ]] || echo 1) "$root/tools/install.sh"
}

# Train for one epoch of two images, which are one step, and test what it wrote.
# run_programs PYTHON FOLDER
run_programs() {
    local data=$2/digits options phase
    "$1" "$root/tools/dataset_converters/digits_to_coco.py" "$data" \
        --num-train 2 --num-val 2
    options=(train_cfg.max_epochs=1 train_cfg.val_interval=1
        train_dataloader.batch_size=2 train_dataloader.num_workers=0
        train_dataloader.persistent_workers=False)
    for phase in train val test; do
        options+=("${phase}_dataloader.dataset.data_root=$data/")
    done
    for phase in val test; do
        options+=("${phase}_evaluator.0.ann_file=$data/annotations/instances_val2017.json")
    done
    "$1" "$root/tools/train.py" "$config" --work-dir "$2/run" \
        --cfg-options "${options[@]}"
    "$1" "$root/tools/test.py" "$config" "$(<"$2/run/last_checkpoint")" \
        --work-dir "$2/run" --cfg-options "${options[@]}"
}

# test_stack NAME VERSIONS TORCH KIND
test_stack() {
    local start=$SECONDS python=$stacks/$1/bin/python
    say "$1: installing"
    install "$@"
    say "$1: ready after $((SECONDS - start)) s; tests"
    (cd "$root" && "$python" -m pytest -q -m 'not slow' -n auto --maxprocesses 8 \
        --dist loadfile -p no:cacheprovider "${tests[@]}")
    say "$1: training and testing"
    run_programs "$python" "$scratch/$1" >"$scratch/$1.log" 2>&1 ||
        { tail -n 40 "$scratch/$1.log"; fail "$1: a program failed"; }
    grep 'bbox_mAP:' "$scratch/$1.log" | tail -n 1
    say "$1: passed after $((SECONDS - start)) s"
}

names=("$@")
if (($# == 0)); then
    mapfile -t names < <(awk 'NF { print $1 }' <<<"$table")
fi
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
for name in "${names[@]}"; do
    row=$(awk -v name="$name" '$1 == name' <<<"$table")
    [[ -n $row ]] || fail "there is no stack $name; there are:" \
        "$(awk 'NF { printf "%s ", $1 }' <<<"$table")"
    read -ra words <<<"$row"
    test_stack "$name" "${words[*]:1:${#words[@]}-3}" "${words[@]: -2}"
done
