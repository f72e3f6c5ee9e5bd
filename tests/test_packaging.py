"""The wheel works in an empty environment, without a checkout."""

import os
import re
import subprocess
import sys
import venv
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow
BUILD_SDIST = (
    'import sys; from setuptools import build_meta; build_meta.build_sdist(sys.argv[1])'
)


@pytest.fixture
def wheel(root, tmp_path):
    """Build the source distribution, and the wheel from it alone.

    In the checkout they leave only what git ignores.
    """
    out = tmp_path / 'dist'
    out.mkdir()
    status = ('git', 'status', '--porcelain', '--ignored')
    before = call(*status, cwd=root).stdout.splitlines()
    call(sys.executable, '-c', BUILD_SDIST, out, cwd=root)
    (sdist,) = out.glob('pws_mmdet-*.tar.gz')
    pip = ('-m', 'pip', 'wheel', '--no-deps', '--no-index', '--no-build-isolation')
    call(sys.executable, *pip, '-w', out, sdist, cwd=out)
    left = set(call(*status, cwd=root).stdout.splitlines()) - set(before)
    assert left <= {'!! build/', '!! pws_mmdet.egg-info/'}
    (wheel,) = out.glob('pws_mmdet-*.whl')
    return wheel


@pytest.fixture
def python(wheel, tmp_path):
    """Install the wheel into a new environment, and return its interpreter.

    The environment sees torch, MMCV and MMDetection of this one, but not its pws_mmdet:
    no .pth file of another folder is read.
    """
    folder = tmp_path / 'empty'
    venv.create(folder, symlinks=True)
    python = folder / 'bin/python'
    (site,) = folder.glob('lib/python*/site-packages')
    others = [path for path in sys.path if Path(path).name.endswith('-packages')]
    (site / 'others.pth').write_text('\n'.join(others))
    pip = ('-m', 'pip', 'install', '--no-deps', '--no-index', '--ignore-installed')
    call(python, *pip, wheel, cwd=folder)
    return python


def call(*command, **kwargs):
    command = [str(part) for part in command]
    return subprocess.run(command, check=True, capture_output=True, text=True, **kwargs)


def test_the_wheel_works_in_an_empty_environment(root, run, python):
    """It has all files, its console scripts, and trains with one of its configs."""
    (package,) = python.parents[1].glob('lib/python*/site-packages/pws_mmdet')
    assert (package / 'py.typed').is_file()
    tracked = call('git', 'ls-files', 'configs', 'tools', 'model-index.yml', cwd=root)
    files = tracked.stdout.splitlines()
    assert [name for name in files if not (package / '.mim' / name).is_file()] == []
    assert os.access(package / '.mim/tools/dist_train.sh', os.X_OK)

    scripts = re.findall(r"'(pws-[a-z-]+)': '\w+'", (root / 'setup.py').read_text())
    assert len(scripts) == 7
    for name in scripts:
        assert str(python) in (python.parent / name).read_text().splitlines()[0]
    log = run(root / 'tools/test_wheel.sh', python).stdout
    assert 'coco/bbox_mAP' in log
    assert 'work_dirs/ssd96_vgg16_pws_digits/epoch_1.pth' in log
