"""Tests of tools/dataset_converters/digits_to_imagefolder.py."""

import sys

import cv2
import digits_to_imagefolder
import numpy as np
import pytest
from digits.imagefolder import convert
from sklearn.datasets import load_digits


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    out_dir = tmp_path_factory.mktemp('data') / 'digits'
    convert(out_dir)
    return out_dir


def files(folder):
    return {str(p.relative_to(folder)) for p in folder.rglob('*') if p.is_file()}


def main(monkeypatch, *args):
    monkeypatch.setattr(sys, 'argv', ['digits_to_imagefolder.py', *map(str, args)])
    digits_to_imagefolder.main()


def test_every_digit_is_in_the_folder_of_its_class(folder):
    targets = load_digits().target
    assert files(folder) == {
        f'{"train" if i < 1297 else "test"}/{target}/{i:04d}.png'
        for i, target in enumerate(targets)
    }
    assert len(targets) == 1797


def test_images_are_those_of_the_digits(folder):
    digits = load_digits()
    for i in (0, 700, 1297, 1796):
        (path,) = folder.glob(f'*/{digits.target[i]}/{i:04d}.png')
        image = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
        assert image.shape == (16, 16) and image.dtype == np.uint8
        small = cv2.resize(image, (8, 8), interpolation=cv2.INTER_AREA)
        pairs = np.corrcoef(small.ravel(), digits.images[i].ravel())
        assert pairs[0, 1] > 0.95


def test_own_size_is_exact(tmp_path):
    convert(tmp_path, size=8)
    image = cv2.imread(str(tmp_path / 'train/0/0000.png'), cv2.IMREAD_GRAYSCALE)
    assert np.array_equal(image, (load_digits().images[0] * 255 / 16).round())


def test_textured_digits_stand_out_in_colour(tmp_path):
    for name in ('a', 'b'):
        convert(tmp_path / name, textured=True)
    digits = load_digits()
    assert len(files(tmp_path / 'a')) == len(digits.target)
    for i in range(0, 1797, 100):
        (path,) = (tmp_path / 'a').glob(f'*/{digits.target[i]}/{i:04d}.png')
        again = tmp_path / 'b' / path.relative_to(tmp_path / 'a')
        assert path.read_bytes() == again.read_bytes()
        image = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
        assert image.shape == (16, 16, 3)
        assert np.ptp(image.astype(int), axis=2).max() > 10
        ink = cv2.resize(digits.images[i] / 16, (16, 16))
        luma = cv2.cvtColor(image, cv2.COLOR_BGR2GRAY).astype(float)
        assert abs(luma[ink > 0.8].mean() - luma[ink < 0.1].mean()) > 40


def test_images_do_not_share_a_texture(folder, tmp_path):
    convert(tmp_path, textured=True)

    def likeness(root):
        """Mean correlation of images of different classes."""
        paths = [next(root.glob(f'train/{k}/*.png')) for k in range(10)]
        images = [cv2.imread(str(p), cv2.IMREAD_GRAYSCALE).ravel() for p in paths]
        return (np.corrcoef(images).sum() - 10) / 90

    assert likeness(tmp_path) < 0.2 < 0.4 < likeness(folder)


def test_main(tmp_path, monkeypatch, capsys):
    main(monkeypatch, tmp_path / 'new/data', '--size', 8)
    assert capsys.readouterr().out.splitlines() == [
        'train: 1297 images',
        'test: 500 images',
        f'written to {tmp_path / "new/data"}',
    ]


@pytest.mark.parametrize(
    'args, message',
    [
        (['--size', 999999999], 'size must be at most 4096, not 999999999'),
        (['--size', 7], 'size must be at least 8, not 7'),
        ([], 'is not empty: use --force'),
    ],
)
def test_bad_input(tmp_path, monkeypatch, capsys, args, message):
    (tmp_path / 'notes.txt').write_text('mine')
    with pytest.raises(SystemExit) as stop:
        main(monkeypatch, tmp_path, *args)
    assert stop.value.code == 2
    assert message in capsys.readouterr().err
    assert files(tmp_path) == {'notes.txt'}


def test_force_replaces_the_splits_alone(folder, tmp_path):
    for name in ('notes.txt', 'train/0/old.png'):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text('mine')
    convert(tmp_path, force=True)
    assert files(tmp_path) == files(folder) | {'notes.txt'}


@pytest.mark.parametrize('force', [False, True])
def test_failure_leaves_everything_as_it_was(tmp_path, monkeypatch, force):
    out_dir = tmp_path / 'data'
    if force:
        (out_dir / 'train').mkdir(parents=True)
        (out_dir / 'train/old.png').write_text('mine')
    before = files(tmp_path)
    real_imwrite = cv2.imwrite
    monkeypatch.setattr(  # OpenCV reports a full disk by its return value only.
        cv2,
        'imwrite',
        lambda path, x: 'test' not in path[-16:] and real_imwrite(path, x),
    )
    with pytest.raises(OSError, match='could not write'):
        convert(out_dir, force=force)
    assert files(tmp_path) == before
    assert [path.name for path in tmp_path.iterdir()] == ['data'] * force
