#!/usr/bin/env bash
#
# Install pws_mmdet and what it stands on: torch, mmengine, mmcv with its
# compiled operators, mmdet. Repeat it and interrupt it as you like: what is in
# place is kept, and a build that was cut off goes on where it stopped.
#
#   tools/install.sh            into .venv, which is made if need be
#   tools/install.sh --check    only name the system packages that are missing
#   tools/install.sh --pretrain besides, mmpretrain for the classification configs,
#                               into .venv/pretrain, which sees all that .venv has
#
#   PYTHON=python3.12        the interpreter that .venv is made from
#   PWS_VENV=FOLDER          another virtual environment than .venv
#   PWS_NO_VENV=1            into the active environment (its `python`) instead
#   PWS_FORKS=1              where there is no mmcv yet: the maintained forks
#                            (onedl-mmcv, onedl-mmengine, onedl-mmdetection); always
#                            so with Python 3.13, where mmcv does not build
#   PWS_TORCH='torch==X.Y'   which torch to take where there is none yet
#   PWS_TORCH_INDEX=URL      a package index with CPU builds of torch, used where
#                            no GPU is seen: saves gigabytes of CUDA libraries
#   MAX_JOBS=N               compilers at a time; by default one for each core and
#                            2.5 GiB of free memory
#
# torch 2.1 or later goes with it, and Python 3.10 to 3.13.

set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cache=${XDG_CACHE_HOME:-$HOME/.cache}/pws_mmdet
numpy= # which numpy torch needs

say() { printf 'install: %s\n' "$*"; }
fail() { say "$@" >&2; exit 1; }
pip() { "$python" -m pip --disable-pip-version-check "$@"; }
# mmengine and the build of mmcv import pkg_resources, which later setuptools lack;
# torch would bring those in.
get() { say "pip install $*"; pip install -q 'setuptools<81' ${numpy:+"$numpy"} "$@"; }
# From /, so that nothing in the current folder passes for an installed module.
py() { (cd / && exec "$python" -W ignore "$@"); }

purelib() { py -c 'import sysconfig; print(sysconfig.get_path("purelib"))'; }

# Whatever pip does touches site-packages: when that and the files that say what
# to install are older than the last success, nothing is left to do.
up_to_date() {
    local site
    [[ -x $python && -f $stamp ]] || return
    site=$(purelib)
    [[ $(<"$stamp") == *" in $site, from $root" && $stamp -nt $site &&
        $stamp -nt $root/setup.py && $stamp -nt $root/tools/install.sh ]]
}

# Does everything import, and pws_mmdet from this checkout?
verify() {
    py - "$root/pws_mmdet" <<'EOF'
import os, sys, sysconfig
import mmcv.ops, mmdet, mmengine, pws_mmdet, torch
folder = os.path.dirname(pws_mmdet.__file__)
if not os.path.samefile(folder, sys.argv[1]):
    sys.exit(f'install: another pws_mmdet comes first: {folder}')
print('install: ready:', *(f'{module.__name__} {module.__version__}' for module in
      (pws_mmdet, torch, mmengine, mmcv, mmdet)), 'in',
      sysconfig.get_path('purelib') + ', from', os.path.dirname(sys.argv[1]))
EOF
}

# Is MODULE there, in VERSION or later? Asked by import, not by distribution:
# the maintained forks (onedl-mmcv, ...) bring the same modules by other names.
has() {
    py - "$@" 2>/dev/null <<'EOF'
import importlib, sys
from mmengine.utils import digit_version
module = importlib.import_module(sys.argv[1])
assert digit_version(module.__version__) >= digit_version(sys.argv[2])
EOF
}

# Which packages to install: choose_packages INTERPRETER
choose_packages() {
    if [[ ${PWS_FORKS:-} == 1 ]] ||
        "$1" -c 'import sys; sys.exit(sys.version_info < (3, 13))'; then
        mmcv=(onedl-mmcv 2.3.6 2.3.0 2.4.0)
        mmengine='onedl-mmengine>=0.10.12,<1.0' mmdet='onedl-mmdetection==3.5.1'
    else
        mmcv=(mmcv 2.1.0 2.0.0rc4 2.2.0) # what mmdet 3.3 wants
        mmengine='mmengine>=0.10.7,<1.0' mmdet='mmdet==3.3.0'
    fi
}

# Can the installed mmcv stay? Where mmdet is installed, too, it is the judge.
mmcv_fits() {
    py - "${mmcv[@]:2}" 2>/dev/null <<'EOF'
import sys
from importlib.util import find_spec
import mmcv.ops
from mmengine.utils import digit_version
if find_spec('mmdet'):
    import mmdet
else:
    minimum, limit = map(digit_version, sys.argv[1:])
    assert minimum <= digit_version(mmcv.__version__) < limit
EOF
}

# All that a wheel of mmcv is tied to; a glob as long as torch is not there.
wheel_key() {
    py - "${mmcv[0]}${mmcv[1]}" <<'EOF'
import os, sys, sysconfig
try:
    from torch import __version__ as torch, cuda
    gpu = '-cuda' if os.environ.get('FORCE_CUDA') == '1' else ''
    if cuda.is_available():
        gpu = '-sm{}{}'.format(*cuda.get_device_capability())
except ImportError:
    torch, gpu = '*', '*'
tag = 'cp{}{}'.format(*sys.version_info)
system = sysconfig.get_platform().replace('-', '_')
print(f'{sys.argv[1]}-torch{torch}-{tag}-{system}{gpu}')
EOF
}

# Name all missing system packages at once, before anything that takes long.
check_system() {
    local needs='' missing
    if [[ ! -x $python ]]; then
        local python=$base
        needs=venv
    fi
    py -c 'import sys; sys.exit(not (3, 10) <= sys.version_info < (3, 14))' ||
        fail "Python 3.10 to 3.13 is needed; PYTHON=... names another than $python"
    if [[ $needs == venv ]] || ! mmcv_fits; then
        find_wheel "$cache/$(wheel_key)" >/dev/null || needs+=' compiler'
    fi
    missing=$(py - "$needs" <<'EOF'
import ctypes, importlib.util, os, shutil, sys, sysconfig
needs, python = sys.argv[1], 'python{}.{}'.format(*sys.version_info)
if 'compiler' in needs:
    if not any(map(shutil.which, os.environ.get('CXX', 'c++ g++ clang++').split())):
        print('g++')
    if not os.path.exists(sysconfig.get_path('include') + '/Python.h'):
        print(f'{python}-dev')
if 'venv' in needs and not importlib.util.find_spec('ensurepip'):
    print(f'{python}-venv')
try:
    import cv2
except ImportError:  # it loads two libraries that systems without a desktop lack
    for library, package in (('libGL.so.1', 'libgl1'),
                             ('libgthread-2.0.so.0', 'libglib2.0-0')):
        try:
            ctypes.CDLL(library)
        except OSError:
            print(package)
EOF
    )
    if [[ -n $missing ]]; then
        say 'system packages are missing; on Debian and Ubuntu:' >&2
        [[ $(id -u) == 0 ]] || printf 'sudo '
        echo "apt-get install -y ${missing//$'\n'/ }"
        exit 1
    fi
}

# find_wheel FOLDER, which can be a pattern
find_wheel() { compgen -G "$1/*mmcv-*.whl"; }

install_torch() {
    local wanted
    py -c 'import torch' 2>/dev/null && return
    read -ra wanted <<<"${PWS_TORCH:-torch==2.13.0}"
    if ! nvidia-smi >/dev/null 2>&1; then
        if [[ -n ${PWS_TORCH_INDEX:-} ]]; then
            # Torch alone: the index need not carry what torch depends on.
            pip install -q --no-deps --index-url "$PWS_TORCH_INDEX" "${wanted[@]}"
        else
            say 'no GPU seen: PWS_TORCH_INDEX can name an index of smaller, CPU-only builds'
        fi
    fi
    get "${wanted[@]}"
}

install_mmcv() {
    local folder others wheel
    mmcv_fits && return
    # Two distributions of the same module would end up mixed in one folder.
    others=$(py -c 'import sys
from importlib.metadata import packages_distributions as found
print(*{*found().get("mmcv", [])} - {sys.argv[1]})' "${mmcv[0]}")
    [[ -z $others ]] || fail "$others has no operators or does not go with mmdet: uninstall it"

    folder=$cache/$(wheel_key)
    mkdir -p "$folder"
    exec 9>"$folder/lock" # one build at a time; the lock ends with its process
    flock -n 9 || { say "waiting for another run that compiles ${mmcv[0]}"; flock 9; }
    find_wheel "$folder" >/dev/null || build_mmcv "$folder"
    exec 9>&-

    wheel=$(find_wheel "$folder")
    pip install -q --no-deps --force-reinstall "$wheel" # even over one for another torch
    get "$wheel"
    py -c 'import mmcv.ops' || fail "this wheel does not work; remove $folder to build anew"
}

# Build the wheel of mmcv in FOLDER/source and move it, complete, to FOLDER.
build_mmcv() {
    local folder=$1 log=$1/build.log
    check_system
    py -c 'import sys, torch, torch.utils.cpp_extension as extension
sys.exit(torch.cuda.is_available() and not extension.CUDA_HOME)' ||
        fail 'a GPU is there, but no nvcc to compile for it: install the CUDA toolkit,' \
            'or hide the GPU (CUDA_VISIBLE_DEVICES=) and have mmcv for the CPU only'
    export MMCV_WITH_OPS=1 MAX_JOBS=${MAX_JOBS:-$(count_jobs)}
    export CFLAGS=${CFLAGS:--g0 -O2 -w} # no debug symbols: half the time
    [[ -n ${CXX:-} ]] || type -P c++ >/dev/null || export CXX=clang++

    say "compiling ${mmcv[*]:0:2}: 2 minutes on two cores, once per machine and torch"
    say "log: $log"
    [[ -d $folder/source ]] || get_source "$folder"
    if ! make_wheel "$folder" "$log"; then
        compgen -G "$folder/source/mmcv/ops/csrc/pytorch/united_*" >/dev/null ||
            show_error "$log"
        mv "$log" "$folder/united.log"
        say 'the united sources do not compile; now each file by itself: 7 to 14 minutes'
        py "$root/tools/unite_sources.py" "$folder/source" --undo
        make_wheel "$folder" "$log" || show_error "$log"
    fi
    mv "$folder/out"/*mmcv-*.whl "$folder"
    rm -rf "$folder"/{out,source,unpacked}
}

# Compilers at a time: each needs memory.
count_jobs() {
    py -c 'import os, psutil
jobs = min(len(os.sched_getaffinity(0)), psutil.virtual_memory().available // (5 << 29))
print(max(1, jobs))'
}

# Unpack the source distribution of mmcv into FOLDER/source, and unite its files.
get_source() {
    local unpacked=$1/unpacked
    rm -rf "$unpacked"
    pip download -q --no-deps --no-build-isolation --no-binary "${mmcv[0]}" \
        -d "$unpacked" "${mmcv[0]}==${mmcv[1]}"
    tar -xzf "$unpacked"/*mmcv-*.tar.gz -C "$unpacked" --strip-components 1
    # torch knows which standard of C++ its headers need: C++20 since 2.15
    sed -i "s/'-std=c++1[47]'//" "$unpacked/setup.py"
    py "$root/tools/unite_sources.py" "$unpacked" \
        --units "$((MAX_JOBS > 4 ? MAX_JOBS : 4))" >/dev/null ||
        say 'the sources cannot be united; each file is compiled by itself: 7 to 14 minutes'
    mv "$unpacked" "$1/source"
}

# make_wheel FOLDER LOG
make_wheel() {
    local status=0
    set -m # a process group of its own, so that the compilers end with this script
    pip wheel -v --no-deps --no-build-isolation --use-pep517 \
        -w "$1/out" "$1/source" >"$2" 2>&1 &
    job=$!
    set +m
    trap 'kill -- -"$job" 2>/dev/null' EXIT
    trap 'exit 130' HUP INT TERM
    show_progress "$2"
    wait "$job" || status=$?
    trap - EXIT HUP INT TERM
    return "$status"
}

show_error() {
    { grep -m 5 -A 3 -E ': (fatal )?error: ' "$1" || tail -n 20 "$1"; } |
        cut -c 1-300 >&2
    ! grep -q ' Killed ' "$1" || say 'out of memory? Try MAX_JOBS=1' >&2
    fail "mmcv was not built; the whole log is $1"
}

# Follow ninja's count in LOG: on one line of a terminal, else every tenth of it.
show_progress() {
    local count finished shown=0
    while kill -0 "$job" 2>/dev/null; do
        sleep 2
        count=$(grep -oE '^ *\[[0-9]+/[0-9]+\]' "$1" | tail -n 1 | tr -d ' []') || continue
        finished=${count%/*}
        if [[ -t 1 ]]; then
            printf '\rinstall: compiled %s ' "$count"
        elif ((finished > shown + ${count#*/} / 10)); then
            shown=$finished
            say "compiled $count"
        fi
    done
    [[ ! -t 1 ]] || echo
}

# MMDetection imports mmpretrain, and that torchvision, wherever they are installed;
# and torchvision of the package index, compiled for CUDA, does not import beside a
# CPU build of torch. In a place of its own it gets in the way of nothing else.
install_pretrain() {
    local overlay=$venv/pretrain site torch
    torch=$(py -c 'import torch; print(torch.__version__.split("+")[0])')
    # torchvision goes with one torch, and pip would take the latest of both
    set -- "torch==$torch" --no-build-isolation -e "${root}[pretrain]"
    if [[ ${PWS_NO_VENV:-} == 1 ]]; then
        get "$@"
        return
    fi
    [[ ! $overlay/.installed -nt $stamp ]] || return 0
    site=$(purelib)
    "$python" -m venv --without-pip --clear "$overlay"
    python=$overlay/bin/python
    echo "import site; site.addsitedir('$site')" >"$(purelib)/parent.pth"
    get "$@"
    py -c 'import pws_mmdet.pretrain'
    touch "$overlay/.installed"
}

venv=${PWS_VENV:-$root/.venv}
if [[ ${PWS_NO_VENV:-} == 1 ]]; then
    base=$(type -P python) || fail 'PWS_NO_VENV=1, but there is no python'
    python=$base
    stamp=$root/.installed
else
    base=$(type -P "${PYTHON:-python3}") || fail "there is no ${PYTHON:-python3}"
    python=$venv/bin/python
    stamp=$venv/.installed
fi
export PATH=${python%/*}:$PATH # torch calls ninja
[[ ! -x $python ]] || base=$python
choose_packages "$base"

if [[ ${1:-} == --check ]]; then
    check_system
    exit
elif up_to_date; then
    cat "$stamp"
    [[ ${1:-} != --pretrain ]] || install_pretrain
    exit
fi
check_system
if ! py -c 'import pip' 2>/dev/null; then
    say "making $venv"
    "$base" -m venv "$venv"
fi
get wheel ninja psutil
install_torch
py -c 'import torch; exit(torch.__version__ < "2.1")' ||
    fail 'torch 2.1 or later is needed; an older one is installed: uninstall it'
# numpy 2 came after torch 2.2, which does not work with it
numpy=$(py -c 'import torch; print("numpy<2" if torch.__version__ < "2.3" else "")')
has mmengine 0.10.7 || get "$mmengine"
install_mmcv
has mmdet 3.3 || get "$mmdet"
PYTHONWARNINGS=ignore get --no-build-isolation -e "${root}[lint,tests]"
verify | tee "$stamp"
[[ ${1:-} != --pretrain ]] || install_pretrain
