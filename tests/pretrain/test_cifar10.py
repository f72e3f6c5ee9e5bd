"""CIFAR-10 from its own files and from a zip file, in the configs."""

import pickle
import zipfile

import cv2
import numpy as np
import pytest
from conftest import load_config
from mmengine.registry import init_default_scope

pytest.importorskip('mmpretrain', reason='the extra `pretrain` is not installed')
from mmpretrain.registry import DATASETS  # noqa: E402

from pws_mmdet.pretrain import AnyCIFAR10  # noqa: E402

CLASSES = AnyCIFAR10.METAINFO['classes']
CONFIG = 'configs/cifar10/resnet56_pws_cifar10.py'


def image_of(label):
    """An image of one colour, RGB, without loss in JPEG."""
    return np.full((32, 32, 3), (20 * label, 100, 250 - 20 * label), np.uint8)


def build(root, split):
    init_default_scope('mmpretrain')
    loader = load_config(CONFIG)[f'{"val" if split == "test" else split}_dataloader']
    return DATASETS.build({**loader.dataset, 'data_root': str(root)})


@pytest.fixture
def own_files(tmp_path, monkeypatch):
    """The files of CIFAR-10 with one image of each class in each, in another order."""
    labels = [*range(5, 10), *range(5)]
    images = np.stack([image_of(i).transpose(2, 0, 1).reshape(-1) for i in labels])
    folder = tmp_path / 'cifar-10-batches-py'
    folder.mkdir()
    for name in ('train_list', 'test_list'):
        files = [file for file, _ in getattr(AnyCIFAR10, name)]
        for file in files:
            (folder / file).write_bytes(pickle.dumps(dict(data=images, labels=labels)))
        # None: their content is not that of the real files
        monkeypatch.setattr(AnyCIFAR10, name, [[file, None] for file in files])
    return tmp_path


def write_zip(path, folder='', classes=CLASSES):
    """A zip file with an image of each class for each split."""
    with zipfile.ZipFile(path, 'w') as archive:
        for split in ('train', 'test'):
            archive.writestr(f'{folder}{split}/', '')
            for name in classes:
                image = cv2.cvtColor(image_of(CLASSES.index(name)), cv2.COLOR_RGB2BGR)
                content = cv2.imencode('.jpg', image)[1].tobytes()
                archive.writestr(f'{folder}{split}/{name}/0001.jpg', content)
    return path


def check_images(dataset, number):
    assert len(dataset) == number
    assert dataset.CLASSES == CLASSES
    for i in range(number):
        data = dataset[i]
        red_green_blue = data['inputs'][:, 16, 16].numpy()
        expected = image_of(data['data_samples'].gt_label.item())[0, 0]
        assert np.abs(red_green_blue - expected.astype(int)).max() <= 4
    assert np.bincount(dataset.get_gt_labels()).tolist() == [number // 10] * 10


def test_own_files(own_files):
    check_images(build(own_files, 'train'), 50)
    check_images(build(own_files, 'test'), 10)


@pytest.mark.parametrize('folder', ['', 'CIFAR-10-images-master/'])
def test_zip_file(tmp_path, folder):
    path = write_zip(tmp_path / 'images.zip', folder)
    for split in ('train', 'test'):
        check_images(build(path, split), 10)
    # as run_table.py --data joins it with the rest of data_root
    check_images(build(f'{path}/', 'test'), 10)


def test_bad_zip_files(tmp_path):
    path = write_zip(tmp_path / 'nine.zip', classes=CLASSES[1:])
    with pytest.raises(ValueError, match='9 classes for train, and CIFAR-10 has 10'):
        build(path, 'train')
    with zipfile.ZipFile(tmp_path / 'empty.zip', 'w'):
        pass
    with pytest.raises(ValueError, match='has no test/CLASS/NUMBER.jpg'):
        build(tmp_path / 'empty.zip', 'test')
    with pytest.raises(FileNotFoundError):
        build(tmp_path / 'none.zip', 'train')
