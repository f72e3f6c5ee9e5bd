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
#   PWS_NO_VENV=1            into the active environment (its `python`) instead
#   PWS_TORCH='torch==X.Y'   which torch to take where there is none yet
#   PWS_TORCH_INDEX=URL      a package index with CPU builds of torch, used where
#                            no GPU is seen: saves gigabytes of CUDA libraries
#   MAX_JOBS=N               compilers at a time, where memory is short

set -euo pipefail

mmcv=2.1.0 # mmdet 3.3 wants 2.0.0rc4 <= mmcv < 2.2.0
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cache=${XDG_CACHE_HOME:-$HOME/.cache}/pws_mmdet
stamp=$root/.installed

say() { printf 'install: %s\n' "$*"; }
fail() { say "$@" >&2; exit 1; }
pip() { "$python" -m pip --disable-pip-version-check "$@"; }
# mmengine and the build of mmcv import pkg_resources, which later setuptools lack;
# torch would bring those in.
get() { say "pip install $*"; pip install -q 'setuptools<81' "$@"; }
# From /, so that nothing in the current folder passes for an installed module.
py() { (cd / && exec "$python" -W ignore "$@"); }

purelib() { py -c 'import sysconfig; print(sysconfig.get_path("purelib"))'; }

# Whatever pip does touches site-packages: when that and the files that say what
# to install are older than the last success, nothing is left to do.
up_to_date() {
    local site
    [[ -x $python && -f $stamp ]] || return
    site=$(purelib)
    [[ $(<"$stamp") == *" in $site" && $stamp -nt $site &&
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
      (pws_mmdet, torch, mmengine, mmcv, mmdet)), 'in', sysconfig.get_path('purelib'))
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

# Can the installed mmcv stay? Where mmdet is installed, too, it is the judge.
mmcv_fits() {
    py - 2>/dev/null <<'EOF'
from importlib.util import find_spec
import mmcv.ops
from mmengine.utils import digit_version
if find_spec('mmdet'):
    import mmdet
else:
    version = digit_version(mmcv.__version__)
    assert digit_version('2.0.0rc4') <= version < digit_version('2.2.0')
EOF
}

# All that a wheel of mmcv is tied to; a glob as long as torch is not there.
wheel_key() {
    py - "$mmcv" <<'EOF'
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
print(f'mmcv{sys.argv[1]}-torch{torch}-{tag}-{system}{gpu}')
EOF
}

# Name all missing system packages at once, before anything that takes long.
check_system() {
    local needs='' missing
    if [[ ! -x $python ]]; then
        local python=$base
        needs=venv
    fi
    py -c 'import sys; sys.exit(sys.version_info < (3, 10))' ||
        fail "Python 3.10 or later is needed; PYTHON=... names another than $python"
    if [[ $needs == venv ]] || ! mmcv_fits; then
        compgen -G "$cache/$(wheel_key)/mmcv-*.whl" >/dev/null || needs+=' compiler'
    fi
    missing=$(py - "$needs" <<'EOF'
import ctypes, importlib.util, os, shutil, sys, sysconfig
needs, python = sys.argv[1], 'python{}.{}'.format(*sys.version_info)
if 'compiler' in needs:
    if sys.version_info >= (3, 13):
        sys.exit('install: mmcv does not build on Python 3.13 or later: name an older one '
                 '(PYTHON=python3.12),\ninstall: or install the forks onedl-mmcv and '
                 'onedl-mmdetection, and run this with PWS_NO_VENV=1')
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
    others=$(py -c 'from importlib.metadata import packages_distributions as found
print(*{*found().get("mmcv", [])} - {"mmcv"})')
    [[ -z $others ]] || fail "$others has no operators or does not go with mmdet: uninstall it"

    folder=$cache/$(wheel_key)
    mkdir -p "$folder"
    exec 9>"$folder/lock" # one build at a time; the lock ends with its process
    flock -n 9 || { say 'waiting for another run that compiles mmcv'; flock 9; }
    compgen -G "$folder/mmcv-*.whl" >/dev/null || build_mmcv "$folder"
    exec 9>&-

    wheel=$(compgen -G "$folder/mmcv-*.whl")
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
    say "compiling mmcv $mmcv: 7 to 14 minutes on two cores, once per machine and torch"
    say "log: $log"
    if [[ ! -d $folder/source ]]; then
        rm -rf "$folder/unpacked"
        pip download -q --no-deps --no-build-isolation --no-binary mmcv \
            -d "$folder/unpacked" "mmcv==$mmcv"
        tar -xzf "$folder/unpacked/mmcv-$mmcv.tar.gz" -C "$folder/unpacked"
        mv "$folder/unpacked/mmcv-$mmcv" "$folder/source"
    fi

    export MMCV_WITH_OPS=1 MAX_JOBS=${MAX_JOBS:-$(nproc)}
    export CFLAGS=${CFLAGS:--g0 -O2 -w} # no debug symbols: half the time
    [[ -n ${CXX:-} ]] || type -P c++ >/dev/null || export CXX=clang++
    set -m # a process group of its own, so that the compilers end with this script
    pip wheel -v --no-deps --no-build-isolation --use-pep517 \
        -w "$folder/out" "$folder/source" >"$log" 2>&1 &
    job=$!
    set +m
    trap 'kill -- -"$job" 2>/dev/null' EXIT
    trap 'exit 130' HUP INT TERM
    show_progress "$log"
    if ! wait "$job"; then
        { grep -m 5 -A 3 -E ': (fatal )?error: ' "$log" || tail -n 20 "$log"; } |
            cut -c 1-300 >&2
        ! grep -q ' Killed ' "$log" || say 'out of memory? Try MAX_JOBS=1' >&2
        fail "mmcv was not built; the whole log is $log"
    fi
    trap - EXIT HUP INT TERM
    mv "$folder/out"/mmcv-*.whl "$folder"
    rm -rf "$folder"/{out,source,unpacked}
}

# Follow ninja's count in LOG: on one line of a terminal, else every tenth.
show_progress() {
    local count shown=0
    while kill -0 "$job" 2>/dev/null; do
        sleep 2
        count=$(grep -oE '^ *\[[0-9]+/[0-9]+\]' "$1" | tail -n 1 | tr -d ' []') || continue
        if [[ -t 1 ]]; then
            printf '\rinstall: compiled %s ' "$count"
        elif ((${count%/*} >= shown + 10)); then
            shown=${count%/*}
            say "compiled $count"
        fi
    done
    [[ ! -t 1 ]] || echo
}

# MMDetection imports mmpretrain, and that torchvision, wherever they are installed;
# and torchvision of the package index, compiled for CUDA, does not import beside a
# CPU build of torch. In a place of its own it gets in the way of nothing else.
install_pretrain() {
    local overlay=$root/.venv/pretrain site torch
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

if [[ ${PWS_NO_VENV:-} == 1 ]]; then
    base=$(type -P python) || fail 'PWS_NO_VENV=1, but there is no python'
    python=$base
else
    base=$(type -P "${PYTHON:-python3}") || fail "there is no ${PYTHON:-python3}"
    python=$root/.venv/bin/python
fi
export PATH=${python%/*}:$PATH # torch calls ninja

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
    say "making $root/.venv"
    "$base" -m venv "$root/.venv"
fi
get wheel ninja psutil
install_torch
has mmengine 0.10.7 || get 'mmengine>=0.10.7,<1.0'
install_mmcv
has mmdet 3.3 || get 'mmdet==3.3.0'
PYTHONWARNINGS=ignore get --no-build-isolation -e "${root}[tests]"
verify | tee "$stamp"
[[ ${1:-} != --pretrain ]] || install_pretrain
