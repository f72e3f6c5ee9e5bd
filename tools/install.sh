#!/usr/bin/env bash
#
# Install pws_mmdet and the packages that it needs: torch, mmengine, mmcv with its
# compiled operators, mmdet. You can interrupt and repeat it. It keeps what is
# installed, and continues an interrupted build.
#
#   tools/install.sh            install into .venv, and create .venv if it is missing
#   tools/install.sh --check    only name the system packages that are missing
#   tools/install.sh --pretrain also install mmpretrain, for the classification
#                               configs, into .venv/pretrain, which uses the packages
#                               of .venv
#
#   PYTHON=python3.12        the interpreter for a new .venv
#   PWS_VENV=FOLDER          use this virtual environment, not .venv
#   PWS_NO_VENV=1            use the active environment (its `python`), not .venv
#   PWS_FORKS=1              if mmcv is not installed, install the maintained forks
#                            (onedl-mmcv, onedl-mmengine, onedl-mmdetection). With
#                            Python 3.13 this is the default: mmcv does not build there
#   PWS_TORCH='torch==X.Y'   the torch to install if there is none
#   PWS_TORCH_INDEX=URL      a package index with CPU builds of torch, used if there is
#                            no GPU. It saves gigabytes of CUDA libraries
#   MAX_JOBS=N               number of parallel compilers. By default each has a core
#                            and 2.5 GiB of free memory
#
# It needs torch 2.1 or later and Python 3.10 to 3.13.

set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cache=${XDG_CACHE_HOME:-$HOME/.cache}/pws_mmdet
numpy= # the version of numpy that torch needs

say() { printf 'install: %s\n' "$*"; }
fail() { say "$@" >&2; exit 1; }
pip() { "$python" -m pip --disable-pip-version-check "$@"; }
# mmengine and the build of mmcv import pkg_resources. setuptools 81 and later lack it,
# and torch would install such a version.
get() { say "pip install $*"; pip install -q 'setuptools<81' ${numpy:+"$numpy"} "$@"; }
# Run Python in /: it could import modules from the current folder.
py() { (cd / && exec "$python" -W ignore "$@"); }

purelib() { py -c 'import sysconfig; print(sysconfig.get_path("purelib"))'; }

# pip changes the time of site-packages. If site-packages, setup.py and this script are
# older than the last successful installation, there is nothing to do.
up_to_date() {
    local site
    [[ -x $python && -f $stamp ]] || return
    site=$(purelib)
    [[ $(<"$stamp") == *" in $site, from $root" && $stamp -nt $site &&
        $stamp -nt $root/setup.py && $stamp -nt $root/tools/install.sh ]]
}

# Check that all modules import, and that pws_mmdet is this checkout.
verify() {
    py - "$root/pws_mmdet" <<'EOF'
import os, sys, sysconfig
import mmcv.ops, mmdet, mmengine, pws_mmdet, torch
folder = os.path.dirname(pws_mmdet.__file__)
if not os.path.samefile(folder, sys.argv[1]):
    sys.exit(f'install: Python imports another pws_mmdet: {folder}')
print('install: ready:', *(f'{module.__name__} {module.__version__}' for module in
      (pws_mmdet, torch, mmengine, mmcv, mmdet)), 'in',
      sysconfig.get_path('purelib') + ', from', os.path.dirname(sys.argv[1]))
EOF
}

# has MODULE VERSION: check that the module is installed, in this version or later. It
# imports the module: the maintained forks have the same modules, but other names.
has() {
    py - "$@" 2>/dev/null <<'EOF'
import importlib, sys
from mmengine.utils import digit_version
module = importlib.import_module(sys.argv[1])
assert digit_version(module.__version__) >= digit_version(sys.argv[2])
EOF
}

# choose_packages INTERPRETER: set the packages to install
choose_packages() {
    if [[ ${PWS_FORKS:-} == 1 ]] ||
        "$1" -c 'import sys; sys.exit(sys.version_info < (3, 13))'; then
        mmcv=(onedl-mmcv 2.3.6 2.3.0 2.4.0)
        mmengine='onedl-mmengine>=0.10.12,<1.0' mmdet='onedl-mmdetection==3.5.1'
    else
        mmcv=(mmcv 2.1.0 2.0.0rc4 2.2.0) # as mmdet 3.3 requires
        mmengine='mmengine>=0.10.7,<1.0' mmdet='mmdet==3.3.0'
    fi
}

# Check that the installed mmcv is suitable. If mmdet is installed, its import decides.
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

# Print what a wheel of mmcv depends on. It is a glob pattern if torch is missing.
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

# Name all missing system packages, before the long steps.
check_system() {
    local needs='' missing
    if [[ ! -x $python ]]; then
        local python=$base
        needs=venv
    fi
    py -c 'import sys; sys.exit(not (3, 10) <= sys.version_info < (3, 14))' ||
        fail "Python 3.10 to 3.13 is needed; set PYTHON to such an interpreter, instead of $python"
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
except ImportError:  # cv2 needs two libraries that servers often lack
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

# find_wheel FOLDER_OR_PATTERN
find_wheel() { compgen -G "$1/*mmcv-*.whl"; }

install_torch() {
    local wanted
    py -c 'import torch' 2>/dev/null && return
    read -ra wanted <<<"${PWS_TORCH:-torch==2.13.0}"
    if ! nvidia-smi >/dev/null 2>&1; then
        if [[ -n ${PWS_TORCH_INDEX:-} ]]; then
            # Without dependencies: the index may lack them.
            pip install -q --no-deps --index-url "$PWS_TORCH_INDEX" "${wanted[@]}"
        else
            say 'no GPU found: set PWS_TORCH_INDEX to install a smaller CPU build of torch'
        fi
    fi
    get "${wanted[@]}"
}

install_mmcv() {
    local folder others wheel
    mmcv_fits && return
    # Two distributions of one module would mix their files in one folder.
    others=$(py -c 'import sys
from importlib.metadata import packages_distributions as found
print(*{*found().get("mmcv", [])} - {sys.argv[1]})' "${mmcv[0]}")
    [[ -z $others ]] || fail "$others has no operators or does not fit mmdet: uninstall it"

    folder=$cache/$(wheel_key)
    mkdir -p "$folder"
    exec 9>"$folder/lock" # one build at a time; the lock ends with the process
    flock -n 9 || { say "waiting for another run that compiles ${mmcv[0]}"; flock 9; }
    find_wheel "$folder" >/dev/null || build_mmcv "$folder"
    exec 9>&-

    wheel=$(find_wheel "$folder")
    pip install -q --no-deps --force-reinstall "$wheel" # replaces a wheel for another torch
    get "$wheel"
    py -c 'import mmcv.ops' || fail "this wheel does not work; remove $folder to build a new one"
}

# build_mmcv FOLDER: build the wheel in FOLDER/source, then move it to FOLDER.
build_mmcv() {
    local folder=$1 log=$1/build.log
    check_system
    py -c 'import sys, torch, torch.utils.cpp_extension as extension
sys.exit(torch.cuda.is_available() and not extension.CUDA_HOME)' ||
        fail 'there is a GPU, but no nvcc to compile for it: install the CUDA toolkit,' \
            'or hide the GPU (CUDA_VISIBLE_DEVICES=) to install mmcv for the CPU only'
    export MMCV_WITH_OPS=1 MAX_JOBS=${MAX_JOBS:-$(count_jobs)}
    export CFLAGS=${CFLAGS:--g0 -O2 -w} # without debug symbols it takes half the time
    [[ -n ${CXX:-} ]] || type -P c++ >/dev/null || export CXX=clang++

    say "compiling ${mmcv[*]:0:2}: 2 minutes on two cores, once per machine and torch"
    say "log: $log"
    [[ -d $folder/source ]] || get_source "$folder"
    if ! make_wheel "$folder" "$log"; then
        compgen -G "$folder/source/mmcv/ops/csrc/pytorch/united_*" >/dev/null ||
            show_error "$log"
        mv "$log" "$folder/united.log"
        say 'the united sources do not compile; compiling each file: 7 to 14 minutes'
        py "$root/tools/unite_sources.py" "$folder/source" --undo
        make_wheel "$folder" "$log" || show_error "$log"
    fi
    mv "$folder/out"/*mmcv-*.whl "$folder"
    rm -rf "$folder"/{out,source,unpacked}
}

# Print the number of parallel compilers. Each needs memory.
count_jobs() {
    py -c 'import os, psutil
jobs = min(len(os.sched_getaffinity(0)), psutil.virtual_memory().available // (5 << 29))
print(max(1, jobs))'
}

# get_source FOLDER: unpack the sources of mmcv into FOLDER/source, and unite them.
get_source() {
    local unpacked=$1/unpacked
    rm -rf "$unpacked"
    pip download -q --no-deps --no-build-isolation --no-binary "${mmcv[0]}" \
        -d "$unpacked" "${mmcv[0]}==${mmcv[1]}"
    tar -xzf "$unpacked"/*mmcv-*.tar.gz -C "$unpacked" --strip-components 1
    # torch sets the standard of C++ that its headers need: C++20 since 2.15
    sed -i "s/'-std=c++1[47]'//" "$unpacked/setup.py"
    py "$root/tools/unite_sources.py" "$unpacked" \
        --units "$((MAX_JOBS > 4 ? MAX_JOBS : 4))" >/dev/null ||
        say 'the sources cannot be united; compiling each file: 7 to 14 minutes'
    mv "$unpacked" "$1/source"
}

# make_wheel FOLDER LOG
make_wheel() {
    local status=0
    set -m # a new process group, so that this script can end the compilers
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

# show_progress LOG: print ninja's count. A log file gets one line for each tenth.
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

# MMDetection imports mmpretrain if it is installed, and mmpretrain imports torchvision.
# A torchvision that was compiled for CUDA does not import with a CPU build of torch.
# So both go into a separate environment, where they cannot break MMDetection.
install_pretrain() {
    local overlay=$venv/pretrain site torch
    torch=$(py -c 'import torch; print(torch.__version__.split("+")[0])')
    # A torchvision fits one torch only, and pip would install the latest of both.
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
    say "creating $venv"
    "$base" -m venv "$venv"
fi
get wheel ninja psutil
install_torch
py -c 'import torch; exit(torch.__version__ < "2.1")' ||
    fail 'torch 2.1 or later is needed: uninstall the older one'
# torch 2.2 and earlier do not work with numpy 2
numpy=$(py -c 'import torch; print("numpy<2" if torch.__version__ < "2.3" else "")')
has mmengine 0.10.7 || get "$mmengine"
install_mmcv
has mmdet 3.3 || get "$mmdet"
PYTHONWARNINGS=ignore get --no-build-isolation -e "${root}[docs,lint,tests]"
verify | tee "$stamp"
[[ ${1:-} != --pretrain ]] || install_pretrain
