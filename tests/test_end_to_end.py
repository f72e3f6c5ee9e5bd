"""From images to a COCO AP table."""

import json
import sys

import pytest

pytestmark = pytest.mark.slow


HEADLINES = {
    'mask_rcnn_r50_fpn_pws_1x': [
        'model.backbone.init_cfg=None',
        'model.backbone.frozen_stages=-1',
        'train_dataloader.batch_size=1',
        'train_dataloader.dataset.indices=2',
    ],
    'ssd320_vgg16_pws_1x': [
        'train_dataloader.batch_size=2',
        'model.test_cfg.score_thr=0',  # after two steps all scores are small
    ],
}


@pytest.mark.parametrize('name', HEADLINES)
def test_headline_configs_on_real_images(name, run, root, coco_mini, tmp_path):
    """Train and test on a few images. Only --cfg-options adapts the config."""
    config = root / f'configs/{name}.py'
    options = [
        f'{loader}_dataloader.dataset.data_root={coco_mini}/'
        for loader in ('train', 'val', 'test')
    ]
    options += [
        f'{evaluator}_evaluator.ann_file={coco_mini}/annotations/instances_val2017.json'
        for evaluator in ('val', 'test')
    ]
    options += [
        'train_dataloader.dataset.indices=4',
        'val_dataloader.dataset.indices=2',
        'test_dataloader.dataset.indices=2',
        'val_dataloader.batch_size=1',
        'test_dataloader.batch_size=1',
        'train_cfg.max_epochs=1',
        'train_cfg.val_interval=1',
        'default_hooks.checkpoint.interval=1',
        'default_hooks.logger.interval=1',
        'randomness.seed=0',
    ]
    options += HEADLINES[name]
    log = run(
        sys.executable, root / 'tools/train.py', config, '--cfg-options', *options
    ).stdout
    assert 'Epoch(train) [1][2/' in log.replace('  ', ' ')
    assert 'nan' not in log.split('Epoch(train)', 1)[1].split('Saving')[0]
    assert 'coco/bbox_mAP' in log
    checkpoint = tmp_path / f'work_dirs/{name}/epoch_1.pth'
    log = run(
        *(sys.executable, root / 'tools/test.py', config, checkpoint),
        *('--show-dir', 'images', '--cfg-options', *options),
    ).stdout
    assert 'coco/bbox_mAP' in log
    assert ('coco/segm_mAP' in log) == name.startswith('mask_rcnn')
    assert len(list(tmp_path.rglob('images/*.jpg'))) == 2


def test_demo(run, root, tmp_path):
    """The demo trains a norm-free Mask R-CNN that finds and segments digits.

    It stops after half of its epochs, with most of its AP.
    """
    half = '--cfg-options', 'train_cfg.max_epochs=2'
    log = run(root / 'tools/demo.sh', *half, timeout=2400).stdout
    table, images = log.rsplit('images of detections', 1)
    folder = tmp_path / images.split(': ', 1)[1].splitlines()[0]
    assert len(list(folder.glob('*.png'))) == 100
    results = [
        json.loads(path.read_text())
        for path in tmp_path.glob('work_dirs/demo/test/*/*.json')
    ]
    assert len(results) == 1
    for name, metric in (('box', 'bbox'), ('mask', 'segm')):
        ap = results[0][f'coco/{metric}_mAP']
        assert ap >= 0.45, name
        assert f'\n{name:6}{ap:8.3f}' in table
    assert log.count('Epoch(val)') >= 2  # it validates every epoch
    report = log.splitlines()[-1].removeprefix('written to ')
    text = (tmp_path / report).read_text(encoding='utf-8')
    for part in ('Training report: norm-free Mask R-CNN', 'figure-1b', '<figure>'):
        assert part in text
