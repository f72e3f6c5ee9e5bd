"""Compile MMCV with the CUDA operators that the detectors of gpu.py call."""

import os
import re
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

# The CUDA sources that are kept, and a pattern of what they register
KEPT = dict(
    nms_cuda='nms_impl',
    roi_align_cuda='roi_align_(forward|backward)_impl',
    roi_pool_cuda='roi_pool_',
    focal_loss_cuda='(sigmoid|softmax)_focal_loss',
    deform_conv_cuda='deformable_',
    modulated_deform_conv_cuda='modulated_deformable_',
)
# These sources call removed CUDA code without registering it.
UNREGISTERED = ('nms_quadri', 'nms_rotated', 'spconv_ops')
REGISTRATION = re.compile(r'REGISTER_DEVICE_IMPL\((\w+),\s*CUDA,\s*(\w+)\)')


def statements(code: str) -> list[str]:
    """Return the declarations and definitions at the top level of C++ code."""
    parts, depth, start = [], 0, 0
    for match in re.finditer(r'[{}();]', code):
        depth += {'{': 1, '}': -1, '(': 1, ')': -1, ';': 0}[match.group()]
        if depth == 0 and match.group() in '};':
            parts.append(code[start : match.end()])
            start = match.end()
    return [*parts, code[start:]]


def prune_bindings(code: str) -> str:
    """Remove the registrations and functions of CUDA operators that are not kept."""
    wanted = re.compile('|'.join(KEPT.values()))
    parts = statements(code)
    registered = [m.groups() for part in parts if (m := REGISTRATION.search(part))]
    functions = {function for name, function in registered if wanted.match(name)}

    def stays(part: str) -> bool:
        if match := REGISTRATION.search(part):
            return match.group(2) in functions
        name = re.search(r'(\w+)\s*\(', re.sub('#.*', '', part))
        return name is None or '{' not in part or name.group(1) in functions

    return ''.join(filter(stays, parts))


def prune(source: Path) -> None:
    """Remove the CUDA operators that are not kept from MMCV's source."""
    folder = source / 'mmcv' / 'ops' / 'csrc' / 'pytorch'
    for path in (folder / 'cuda').glob('*.cu'):
        if path.stem not in KEPT:
            path.unlink()
    bindings = folder / 'cuda' / 'cudabind.cpp'
    bindings.write_text(prune_bindings(bindings.read_text()))
    for name in UNREGISTERED:
        path = folder / f'{name}.cpp'
        path.write_text(path.read_text().replace('MMCV_WITH_CUDA', 'WITH_ALL_OF_CUDA'))


def headers() -> list[str]:
    """Return the folders of headers in the wheels of CUDA."""
    return [
        str(path)
        for folder in sys.path
        for path in Path(folder).glob('nvidia/cu*/include')
    ]


def build(archive: Path, folder: Path, cuda: bool, jobs: int) -> None:
    """Compile MMCV.

    Args:
        archive: MMCV's source.
        folder: Folder for the wheel.
        cuda: Compile CUDA operators.
        jobs: Number of compilers at the same time.
    """
    with tempfile.TemporaryDirectory() as work:
        with tarfile.open(archive) as tar:
            tar.extractall(work, filter='data')
        (source,) = Path(work).iterdir()
        # torch chooses the standard of C++ that its headers need: C++20 since 2.15.
        setup = source / 'setup.py'
        setup.write_text(re.sub(r"'-std=c\+\+1[47]'", '', setup.read_text()))
        env = dict(os.environ, MMCV_WITH_OPS='1', MAX_JOBS=str(jobs))
        if cuda:
            prune(source)
            env['FORCE_CUDA'] = '1'
            paths = [*headers(), env.get('CPATH', '')]
            env['CPATH'] = os.pathsep.join(filter(None, paths))
            if 'TORCH_CUDA_ARCH_LIST' not in env:
                import torch

                major, minor = torch.cuda.get_device_capability()
                env['TORCH_CUDA_ARCH_LIST'] = f'{major}.{minor}'
        else:
            env['CUDA_VISIBLE_DEVICES'] = ''
            env.pop('FORCE_CUDA', None)
        command = [sys.executable, 'setup.py', '-q', 'bdist_wheel', '-d']
        subprocess.run([*command, folder.resolve()], cwd=source, env=env, check=True)
