"""The wheel works without a checkout."""

import subprocess
import sys
import zipfile

import pytest

pytestmark = pytest.mark.slow


def test_the_wheel_has_configs_and_tools(root, run, tmp_path):
    status = ['git', '-C', str(root), 'status', '--porcelain', '--ignored']
    before = subprocess.run(status, capture_output=True, text=True).stdout
    run(
        *(sys.executable, '-m', 'pip', 'wheel', '--no-deps', '--no-build-isolation'),
        *('-w', tmp_path, root),
    )
    after = subprocess.run(status, capture_output=True, text=True).stdout
    left = set(after.splitlines()) - set(before.splitlines())
    assert left <= {'!! build/', '!! pws_mmdet.egg-info/'}
    (wheel,) = tmp_path.glob('pws_mmdet-*.whl')
    site = tmp_path / 'site'
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
    assert (site / 'pws_mmdet/py.typed').is_file()
    mim = site / 'pws_mmdet/.mim'
    for name in (
        'model-index.yml',
        'configs/metafile.yml',
        'configs/mask_rcnn_r50_fpn_pws_1x.py',
        'configs/_base_/digits.py',
        'tools/train.py',
        'tools/dist_train.sh',
        'tools/dataset_converters/digits_to_coco.py',
        'tools/dataset_converters/digits/coco.py',
        'tools/paper/run_table.py',
        'tools/paper/tables.yml',
    ):
        assert (mim / name).is_file(), name
    code = """
import pws_mmdet
from mmengine.config import Config
assert pws_mmdet.__file__.startswith(SITE), pws_mmdet.__file__
cfg = Config.fromfile(SITE + '/pws_mmdet/.mim/configs/mask_rcnn_r50_fpn_pws_1x.py')
assert cfg.model.backbone.type == 'PWSResNet'
"""
    code = code.replace('SITE', repr(str(site)))
    run(sys.executable, '-c', code, PYTHONPATH=str(site))
    usage = run(sys.executable, mim / 'tools/train.py', '--help', PYTHONPATH=str(site))
    assert 'usage: train.py' in usage.stdout
