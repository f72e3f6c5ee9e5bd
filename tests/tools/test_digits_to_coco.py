"""Tests of tools/dataset_converters/digits_to_coco.py."""

import json
import sys

import cv2
import digits_to_coco
import numpy as np
import pytest
from digits.coco import convert, split_digits, trace_outlines
from digits.drawing import draw_image, overlap
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from pycocotools import mask as mask_utils
from pycocotools.coco import COCO
from sklearn.datasets import load_digits

SMALL = dict(num_train=12, num_val=6, size=64, seed=3)
SPLITS = ('train2017', 'val2017')


@pytest.fixture(scope='module')
def root(tmp_path_factory):
    out_dir = tmp_path_factory.mktemp('data') / 'digits'
    convert(out_dir, **SMALL)
    return out_dir


@pytest.fixture(scope='module')
def cocos(root):
    return [COCO(root / 'annotations' / f'instances_{split}.json') for split in SPLITS]


def contents(root):
    """Return the bytes of each file below a directory."""
    return {
        path.relative_to(root).as_posix(): path.read_bytes()
        for path in root.rglob('*')
        if path.is_file()
    }


def run_main(monkeypatch, *args):
    monkeypatch.setattr(sys, 'argv', ['digits_to_coco.py', *map(str, args)])
    digits_to_coco.main()


def test_layout(root, cocos):
    expected = {f'annotations/instances_{split}.json' for split in SPLITS}
    for split, coco, count in zip(SPLITS, cocos, (12, 6), strict=True):
        assert sorted(coco.imgs) == list(range(1, count + 1))
        for image in coco.imgs.values():
            expected.add(f'{split}/{image["file_name"]}')
            pixels = cv2.imread(str(root / split / image['file_name']))
            assert pixels.shape == (image['height'], image['width'], 3)
            assert pixels.shape[:2] == (64, 64)
        ids = [ann['id'] for ann in coco.dataset['annotations']]
        assert ids == list(range(1, len(ids) + 1))
        assert all(ann['iscrowd'] == 0 for ann in coco.anns.values())
        assert {ann['image_id'] for ann in coco.anns.values()} == set(coco.imgs)
    assert set(contents(root)) == expected
    assert [path.name for path in root.parent.iterdir()] == [root.name]


def test_categories(cocos):
    names = [
        'zero',
        'one',
        'two',
        'three',
        'four',
        'five',
        'six',
        'seven',
        'eight',
        'nine',
    ]
    for coco in cocos:
        assert [(c['id'], c['name']) for c in coco.dataset['categories']] == list(
            enumerate(names, 1)
        )
    targets = load_digits().target
    for coco in cocos:
        for ann in coco.anns.values():
            assert ann['category_id'] == targets[ann['digit_index']] + 1


def test_same_seed_same_bytes(root, tmp_path):
    convert(tmp_path / 'again', **SMALL)
    assert contents(tmp_path / 'again') == contents(root)


def test_other_seed_other_data(root, tmp_path):
    convert(tmp_path / 'other', **{**SMALL, 'seed': 4})
    ours, other = contents(root), contents(tmp_path / 'other')
    assert ours.keys() == other.keys()
    assert all(ours[name] != other[name] for name in ours)


@pytest.mark.parametrize('seed', [0, 3])
def test_split_is_a_stratified_partition(seed):
    targets = load_digits().target
    train, val = split_digits(targets, seed)
    assert sorted([*train, *val]) == list(range(len(targets)))
    share = np.bincount(targets[val], minlength=10) / np.bincount(targets)
    assert np.allclose(share, 0.2, atol=0.01)


def test_splits_show_digits_of_their_own_pool(cocos):
    pools = split_digits(load_digits().target, SMALL['seed'])
    for coco, pool in zip(cocos, pools, strict=True):
        shown = {ann['digit_index'] for ann in coco.anns.values()}
        assert shown <= set(pool.tolist())


def test_boxes_and_areas_are_those_of_the_polygons(cocos):
    for coco in cocos:
        for ann in coco.anns.values():
            mask = coco.annToMask(ann)
            x, y, w, h = ann['bbox']
            assert 0 <= x < x + w <= 64 and 0 <= y < y + h <= 64
            assert tuple(ann['bbox']) == cv2.boundingRect(mask)
            assert ann['area'] == mask.sum()
            assert all(len(polygon) >= 6 for polygon in ann['segmentation'])


def test_masks_have_the_shape_of_the_digit(cocos):
    images = load_digits().images
    ious = []
    for coco in cocos:
        for ann in coco.anns.values():
            digit = (images[ann['digit_index']] >= 7).astype(np.uint8)
            x, y, w, h = cv2.boundingRect(digit)
            left, top, width, height = ann['bbox']
            expected = cv2.resize(digit[y : y + h, x : x + w] * 1.0, (width, height))
            outlines, _ = cv2.findContours(
                (expected > 0.5).astype(np.uint8),
                cv2.RETR_EXTERNAL,
                cv2.CHAIN_APPROX_NONE,
            )
            filled = (
                cv2.drawContours(np.zeros((height, width)), outlines, -1, 1, cv2.FILLED)
                > 0
            )
            mask = coco.annToMask(ann)[top : top + height, left : left + width] > 0
            ious.append((mask & filled).sum() / (mask | filled).sum())
    assert np.median(ious) > 0.75


def test_masks_lie_on_pixels_of_one_colour(root, cocos):
    spreads = []
    for split, coco in zip(SPLITS, cocos, strict=True):
        for ann in coco.anns.values():
            name = coco.imgs[ann['image_id']]['file_name']
            # The filled holes of the other digits show the background.
            if ann['category_id'] - 1 not in (1, 2, 3, 5, 7):
                continue
            inside = cv2.erode(coco.annToMask(ann), np.ones((3, 3))) > 0
            if inside.sum() < 10:
                continue
            image = cv2.imread(str(root / split / name)).astype(float)
            spreads.append(image[inside].std(axis=0).max())
    assert len(spreads) > 5
    # The noise has 6, and a faint stroke shows some of the background.
    assert np.percentile(spreads, 80) < 9


def test_later_digits_hide_earlier_ones():
    digits = load_digits().images
    rng = np.random.default_rng(0)
    for _ in range(5):
        _, objects = draw_image(digits, np.arange(100), 64, 20, rng)
        assert len(objects) > 1
        assert np.sum([mask for _, mask in objects], axis=0).max() == 1
        assert all(mask.any() for _, mask in objects)


def test_overlap_is_relative_to_the_smaller_box():
    large, small = np.array([0, 0, 10, 10]), np.array([8, 5, 12, 10])
    assert overlap(large, small) == 0.5
    assert overlap(small, large) == 0.5
    assert overlap(small, large - 20) == 0


@given(arrays(np.uint8, (9, 11), elements=st.integers(0, 1)))
def test_outlines_decode_to_the_filled_mask(mask):
    outlines = trace_outlines(mask)
    polygons = [outline.ravel().tolist() for outline in outlines]
    decoded = np.zeros_like(mask)
    if polygons:
        decoded = mask_utils.decode(
            mask_utils.merge(mask_utils.frPyObjects(polygons, *mask.shape))
        )
    filled = np.pad(mask, 1)
    cv2.floodFill(filled, None, (0, 0), 2)
    assert np.array_equal(decoded, filled[1:-1, 1:-1] != 2)


def test_one_digit_at_most(tmp_path):
    counts = convert(tmp_path / 'data', 5, 2, max_digits=1)
    assert counts == {'train2017': 5, 'val2017': 2}


@pytest.mark.parametrize(
    'option, value, message',
    [
        ('--num-train', '0', 'num_train must be at least 1, not 0'),
        ('--num-val', '-2', 'num_val must be at least 1, not -2'),
        ('--size', '31', 'size must be at least 32, not 31'),
        ('--max-digits', '0', 'max_digits must be at least 1, not 0'),
        ('--max-digits', '21', 'max_digits must be at most 20, not 21'),
        ('--num-train', str(10**20), 'num_train must be at most 10000000, not'),
        ('--size', '99999999999', 'size must be at most 8192, not 99999999999'),
        ('--seed', '-1', 'seed must be at least 0, not -1'),
        ('--size', 'big', "argument --size: invalid int value: 'big'"),
    ],
)
def test_bad_option(tmp_path, monkeypatch, capsys, option, value, message):
    with pytest.raises(SystemExit) as stop:
        run_main(monkeypatch, tmp_path / 'data', option, value)
    assert stop.value.code == 2
    assert f'error: {message}' in capsys.readouterr().err
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(
    'arguments',
    [
        dict(num_train=0),
        dict(num_val=0),
        dict(size=31),
        dict(max_digits=0),
        dict(max_digits=21),
        dict(seed=-1),
    ],
)
def test_convert_rejects_bad_numbers(tmp_path, arguments):
    with pytest.raises(ValueError, match=next(iter(arguments))):
        convert(tmp_path / 'data', **arguments)
    assert not any(tmp_path.iterdir())


def test_smallest_size(tmp_path):
    counts = convert(tmp_path / 'data', 5, 5, size=32, max_digits=20)
    assert min(counts.values()) >= 5


def test_main_reports_what_it_wrote(tmp_path, monkeypatch, capsys):
    out_dir = tmp_path / 'new' / 'data'
    run_main(monkeypatch, out_dir, '--num-train', 3, '--num-val', 2, '--size', 40)
    expected = []
    for split, count in zip(SPLITS, (3, 2), strict=True):
        path = out_dir / 'annotations' / f'instances_{split}.json'
        annotations = json.loads(path.read_text())['annotations']
        expected.append(f'{split}: {count} images, {len(annotations)} objects')
        assert len(list((out_dir / split).iterdir())) == count
    assert capsys.readouterr().out.splitlines() == [*expected, f'written to {out_dir}']


def test_defaults_of_main_are_those_of_convert(monkeypatch):
    seen = {}
    monkeypatch.setattr(
        digits_to_coco,
        'check_arguments',
        lambda **arguments: seen.update(arguments) or sys.exit(),
    )
    with pytest.raises(SystemExit):
        run_main(monkeypatch, 'data')
    names = ('num_train', 'num_val', 'size', 'max_digits', 'seed', 'force')
    assert tuple(seen[name] for name in names) == convert.__defaults__


def test_refuses_to_overwrite(tmp_path, monkeypatch, capsys):
    (tmp_path / 'notes.txt').write_text('mine')
    with pytest.raises(SystemExit) as stop:
        run_main(monkeypatch, tmp_path)
    assert stop.value.code == 2
    assert f'{tmp_path} is not empty: use --force' in capsys.readouterr().err
    with pytest.raises(FileExistsError, match='not empty'):
        convert(tmp_path)
    assert contents(tmp_path) == {'notes.txt': b'mine'}


def test_refuses_the_root_of_the_file_system(monkeypatch, capsys):
    with pytest.raises(SystemExit) as stop:
        run_main(monkeypatch, '/', '--force')
    assert stop.value.code == 2
    assert '/ is the root of the file system' in capsys.readouterr().err


def test_refuses_a_file(tmp_path, monkeypatch, capsys):
    path = tmp_path / 'notes.txt'
    path.write_text('mine')
    with pytest.raises(SystemExit) as stop:
        run_main(monkeypatch, path, '--force')
    assert stop.value.code == 2
    assert 'is not a directory' in capsys.readouterr().err
    assert path.read_text() == 'mine'


def test_accepts_an_empty_directory(root, tmp_path):
    convert(tmp_path, **SMALL)
    assert contents(tmp_path) == contents(root)


def test_force_replaces_only_the_data_set(root, tmp_path):
    out_dir = tmp_path / 'data'
    convert(out_dir, 15, 2, size=32)
    foreign = {
        'notes.txt': b'mine',
        'annotations/mine.json': b'{}',
        'test2017/1.png': b'image',
    }
    for name, text in foreign.items():
        (out_dir / name).parent.mkdir(exist_ok=True)
        (out_dir / name).write_bytes(text)
    convert(out_dir, **SMALL, force=True)
    assert contents(out_dir) == {**contents(root), **foreign}


def test_force_leaves_the_target_of_a_link(tmp_path):
    (tmp_path / 'elsewhere').mkdir()
    (tmp_path / 'elsewhere' / '1.png').write_bytes(b'image')
    out_dir = tmp_path / 'data'
    out_dir.mkdir()
    (out_dir / 'train2017').symlink_to(tmp_path / 'elsewhere')
    convert(out_dir, 2, 2, size=32, force=True)
    assert contents(tmp_path / 'elsewhere') == {'1.png': b'image'}
    assert len(list((out_dir / 'train2017').iterdir())) == 2


@pytest.mark.parametrize('force', [False, True])
def test_failure_leaves_everything_as_it_was(tmp_path, monkeypatch, force):
    out_dir = tmp_path / 'data'
    if force:
        convert(out_dir, 2, 2, size=32)
    before = contents(tmp_path)
    real_imwrite = cv2.imwrite
    monkeypatch.setattr(  # OpenCV reports a full disk by its return value only.
        cv2,
        'imwrite',
        lambda path, image: 'val2017' not in path and real_imwrite(path, image),
    )
    with pytest.raises(OSError, match='could not write'):
        convert(out_dir, **SMALL, force=force)
    assert contents(tmp_path) == before
    assert [path.name for path in tmp_path.iterdir()] == ['data'] * force
