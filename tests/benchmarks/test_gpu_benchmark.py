"""Tests of what benchmarks/gpu.sh runs, without a GPU."""

import io
import json
import os
import subprocess
import sys
import zipfile

import numpy as np
import pytest
import torch
from gpu_cases import KINDS
from gpu_images import pack, read_images
from gpu_kinds import make_kinds, prepare
from gpu_report import make_report, read_report
from gpu_tables import to_markdown
from mmcv_build import prune_bindings
from networks import PARTS
from PIL import Image


@pytest.fixture(scope='module')
def images(tmp_path_factory):
    """A zip file of noise in CIFAR-10's layout."""
    path = tmp_path_factory.mktemp('images') / 'images.zip'
    rng = np.random.default_rng(0)
    with zipfile.ZipFile(path, 'w') as archive:
        for split, count in (('train', 24), ('test', 4)):
            for label in range(10):
                for i in range(count):
                    content = io.BytesIO()
                    noise = rng.integers(256, size=(32, 32, 3), dtype=np.uint8)
                    Image.fromarray(noise).save(content, 'jpeg')
                    archive.writestr(
                        f'{split}/class{label}/{i:04}.jpg', content.getvalue()
                    )
    return path


@pytest.mark.slow
def test_all_of_it_on_a_cpu(root, images, tmp_path):
    out = tmp_path / 'out'
    process = subprocess.run(
        [root / 'benchmarks/gpu.sh', '--cpu', '--data', images, out],
        capture_output=True,
        text=True,
        env=dict(os.environ, PYTHON=sys.executable),
    )
    assert process.returncode == 0, process.stdout + process.stderr
    assert 'failed' not in process.stdout, process.stdout
    report = read_report(out / 'gpu.jsonl')
    assert [part['part'] for part in report['speed']] == [
        'ResNet-50',
        'VGG-16-SSD320',
        'Mask R-CNN',
    ]
    for part in report['speed']:
        assert not part['not_measured']
        assert not any(row['error'] for row in part['results'])
        assert {row['inference'] for row in part['results']} == {False, True}
    assert {row['kind'] for row in report['cifar']} == {'PWS', 'BN', 'GN'}
    assert ' passed' in report['notes']['tests']
    assert 'failed' not in report['notes']['tests']
    text = (out / 'gpu.md').read_text()
    assert text in process.stdout
    assert 'ScaledWS' in text and 'fused inference' in text and 'CIFAR-10' in text
    assert len([*out.iterdir()]) <= 8


def test_all_kinds_are_there():
    assert set(KINDS) <= set(make_kinds())


@pytest.mark.parametrize(
    'name, has_kernel', [('PWS', True), ('PWS, group norm', False), ('ScaledWS', False)]
)
def test_names_switch_the_kernel(name, has_kernel, monkeypatch):
    """ScaledWS is measured as the networks of others have it, without the kernel."""
    switched = []
    monkeypatch.setattr('gpu_kinds.use_filter_kernel', switched.append)
    part = PARTS['conv 3x3, 64 channels, H/4']
    contender = prepare(part.make(name, make_kinds()[name], 1, 32, False), False)
    contender.build(torch.device('cpu'), 1, False, 0, torch.contiguous_format)
    contender.prepare()
    assert switched == [has_kernel]


def test_a_part_of_the_images(images, tmp_path):
    pack(images, tmp_path / 'part.zip', 120)
    for split, count in (('train', 120), ('test', 20)):
        made, labels = read_images(tmp_path / 'part.zip', split, bytes)
        assert len(made) == count and set(labels) == set(range(10))
        whole = read_images(images, split, bytes)[0]
        assert set(made) < set(whole)
    with pytest.raises(ValueError, match='has no val/CLASS'):
        read_images(images, 'val', bytes)


def test_a_run_that_was_cut_off_is_reported(tmp_path, capsys):
    """Missing and broken parts are left out of the report and of the tables."""
    (tmp_path / 'broken.json').write_text('{')
    machine = dict(gpu='A GPU', date='2026-01-01', versions=dict(torch='2'))
    row = dict(
        part='ResNet-50',
        batch_size=2,
        image_size=[8, 8],
        setting='AMP',
        inference=False,
        error=None,
        images_per_second=10.0,
        peak_mib=512.0,
        speed=dict(plain=0.5, BN=2.0),
    )
    failed = dict(row, error='OutOfMemoryError: too much')
    rows = [dict(row, kind='plain'), dict(row, kind='PWS'), dict(failed, kind='BN')]
    part = dict(part='ResNet-50', machine=machine, results=rows)
    part['not_measured'] = [[2, 'fp32', True]]
    (tmp_path / 'speed.json').write_text(json.dumps(part))
    out = tmp_path / 'gpu.jsonl'
    parts = [tmp_path / name for name in ('speed.json', 'broken.json', 'none.json')]
    make_report(parts, out, tmp_path / 'gpu.md', ['tests=all'])
    assert read_report(out)['speed'] == [part]
    text = (tmp_path / 'gpu.md').read_text()
    assert '| PWS | 10.0 (0.500) |' in text
    assert '| BN | OutOfMemoryError |' in text
    assert '2 images, fp32, inference' in text
    assert 'A GPU' in text
    assert 'broken.json is left out' in capsys.readouterr().err


def test_bindings_of_removed_operators_are_removed():
    code = """#include "a.hpp"
void NMSLauncher(Tensor a);
Tensor nms_cuda(Tensor a) { if (a) { return NMSLauncher(a); } }
Tensor nms_impl(Tensor a);
REGISTER_DEVICE_IMPL(nms_impl, CUDA, nms_cuda);
typedef enum { SUM = 0, MEAN = 1 } reduce_t;
void knn_cuda(int b) {
  KNNLauncher(b);
};
REGISTER_DEVICE_IMPL(knn_forward_impl, CUDA,
                     knn_cuda);
"""
    made = prune_bindings(code)
    assert 'knn' not in made and 'KNN' not in made
    kept = [line for line in code.splitlines() if not {'knn', 'KNN'} & {*line.split()}]
    for line in kept[:6]:
        assert line in made


def test_published_tables_are_those_of_the_records(root):
    page = (root / 'docs/benchmarks-gpu.md').read_text()
    _, *sections = page.split('\n## Tables: ')
    for name, section in zip(['h200-kernel', 'h200'], sections, strict=True):
        report = read_report(root / f'docs/benchmarks/gpu/{name}.jsonl')
        _, _, tables = section.partition('\n\n')
        assert tables.rstrip() == to_markdown(report).rstrip()
