"""Missing files and folders that a config names."""

import copy
import re
import shutil
from pathlib import Path

import pytest
from detection_data import COCO_CONFIG, DIGITS_CONFIG, VOC_CONFIG, load, message_of
from mmdet.datasets import CocoDataset
from mmdet.evaluation import CocoMetric
from mmdet.registry import DATASETS, METRICS

from pws_mmdet.engine.checks import check_data
from pws_mmdet.engine.checks.data_paths import is_reachable
from pws_mmdet.engine.checks.missing_files import DOWNLOAD

IS_REACHABLE = 'pws_mmdet.engine.checks.data_paths.is_reachable'


def test_complete_data_passes(voc, coco):
    check_data(load(VOC_CONFIG))
    check_data(load(COCO_CONFIG))


def test_one_error_names_everything_that_is_missing(workplace):
    message = message_of(check_data, load(COCO_CONFIG))
    for path, option in (
        ('data/coco/annotations/instances_train2017.json', 'dataset.ann_file'),
        ('data/coco/train2017/', 'dataset.data_prefix.img'),
    ):
        assert f'{path}  (train_dataloader.{option})' in message
    assert message.count('instances_val2017.json  (') == 1
    assert f'{DOWNLOAD} coco2017 --save-dir data/coco\n' in message
    assert 'ln -s FOLDER data/coco\n' in message

    message = message_of(check_data, load(VOC_CONFIG))
    for i, path in enumerate(('VOC2007/', 'VOC2012/')):
        option = f'(train_dataloader.dataset.datasets.{i}.'
        path = f'data/VOCdevkit/{path}'
        assert f'{path}ImageSets/Main/trainval.txt  {option}ann_file)' in message
        assert f'{path}  {option}data_prefix.sub_data_root' in message
    assert f'{DOWNLOAD} voc2007 --save-dir data\n' in message
    assert f'{DOWNLOAD} voc2012 --save-dir data\n' in message
    assert 'ln -s FOLDER data/VOCdevkit\n' in message
    assert 'coco' not in message


def test_the_download_program_in_the_error_exists():
    program = Path(DOWNLOAD.split()[1])
    text = program.read_text()
    for part in ('--dataset-name', '--save-dir', '--unzip', 'coco2017', 'voc2012'):
        assert part in text


def test_the_command_in_the_error_makes_the_data(workplace, digits):
    cfg = load(DIGITS_CONFIG)
    message = message_of(check_data, cfg)
    program = re.search(r'    python (\S+/digits_to_coco\.py) data/digits\n', message)
    assert Path(program[1]).is_file()
    assert 'coco2017' not in message
    (workplace / 'data').mkdir()
    (workplace / 'data/digits').symlink_to(digits)  # which that program drew
    check_data(cfg)


@pytest.mark.parametrize('part', ['ImageSets', 'Annotations', 'JPEGImages'])
def test_a_folder_of_voc_is_missing(voc, part):
    shutil.rmtree(voc / f'VOC2012/{part}')
    message = message_of(check_data, load(VOC_CONFIG))
    assert f'data/VOCdevkit/VOC2012/{part}/' in message
    assert 'VOC2007/' not in message.split('Download')[0].split('expected')[0]


@pytest.mark.parametrize('name', ['Annotations/000002.xml', 'JPEGImages/000002.jpg'])
def test_one_file_of_voc_is_missing(voc, name):
    (voc / 'VOC2007' / name).unlink()
    folder, name = name.split('/')
    message = message_of(check_data, load(VOC_CONFIG))
    assert f'data/VOCdevkit/VOC2007/{folder}/: 1 of 3 files, {name}  (' in message


def test_names_in_a_list_of_voc_may_have_folders(voc):
    year = voc / 'VOC2007'
    for folder, suffix in (('Annotations', 'xml'), ('JPEGImages', 'jpg')):
        (year / folder / 'more').mkdir()
        path = year / folder / f'000002.{suffix}'
        path.rename(path.parent / 'more' / path.name)
    for path in (year / 'ImageSets/Main').iterdir():
        path.write_text(path.read_text().replace('000002', 'more/000002'))
    check_data(load(VOC_CONFIG))
    (year / 'JPEGImages/more/000002.jpg').unlink()
    message = message_of(check_data, load(VOC_CONFIG))
    assert 'VOC2007/JPEGImages/more/: 1 of 1 files, 000002.jpg  (' in message


def test_paths_in_wrapped_datasets_and_lists_of_evaluators(coco):
    cfg = load(COCO_CONFIG)
    dataset = copy.deepcopy(cfg.train_dataloader.dataset)
    dataset.ann_file = 'none.json'
    cfg.train_dataloader.dataset = dict(
        type='RepeatDataset',
        times=2,
        dataset=dict(
            type='MultiImageMixDataset',
            pipeline=[],
            dataset=dict(type='ConcatDataset', datasets=[dataset]),
        ),
    )
    cfg.val_evaluator = [dict(type='CocoMetric', ann_file='neither.json')]
    message = message_of(check_data, cfg)
    option = 'train_dataloader.dataset.dataset.dataset.datasets.0.ann_file'
    assert f'data/coco/none.json  ({option})' in message
    assert 'neither.json  (val_evaluator.0.ann_file)' in message


def test_remote_and_unknown_datasets_are_not_checked(workplace):
    here = dict(type='CocoDataset', data_root='none', ann_file='none.json')
    datasets = [
        dict(here, backend_args=dict(backend='petrel')),
        dict(here, pipeline=[dict(type='LoadImageFromFile', backend_args=dict(a=1))]),
        dict(here, pipeline=[dict(type='LoadImageFromFile', file_client_args=here)]),
        dict(here, data_root='s3://bucket', data_prefix=dict(img='train/')),
        dict(here, type='CocoCaptionDataset'),
        dict(here, type='unknown'),
    ]
    for dataset in datasets:
        check_data(dict(train_dataloader=dict(dataset=dataset)))
    evaluator = dict(type='CocoMetric', ann_file='http://host/val.json')
    check_data(dict(val_evaluator=evaluator, val_dataloader=None))
    with pytest.raises(FileNotFoundError, match=r'none/none\.json'):
        check_data(dict(train_dataloader=dict(dataset=here)))


def class_folders(data_root, **kwargs):
    dataset = dict(type='CustomDataset', data_root=str(data_root), **kwargs)
    return dict(train_dataloader=dict(dataset=dataset))


@pytest.mark.parametrize(
    'root, way',
    [
        ('data/digits_imagefolder', 'digits_to_imagefolder.py {}\n'),
        ('data/digits_textured', 'digits_to_imagefolder.py {} --textured\n'),
    ],
)
def test_a_missing_folder_of_classes(workplace, root, way):
    cfg = class_folders(root, data_prefix='train')
    option = 'train_dataloader.dataset.data_prefix'
    message = message_of(check_data, cfg)
    assert f'    {root}/train/CLASS/  ({option})\n' in message
    assert way.format(root) in message
    Path(root, 'train').mkdir(parents=True)
    Path(root, 'train/README').touch()  # no class
    assert f'{root}/train/CLASS/' in message_of(check_data, cfg)
    Path(root, 'train/0').mkdir()
    check_data(cfg)


def test_a_list_of_images_replaces_folders_of_classes(workplace):
    cfg = class_folders('data', ann_file='list.txt', data_prefix=dict(img_path='all'))
    message = message_of(check_data, cfg)
    assert 'data/list.txt  (train_dataloader.dataset.ann_file)\n' in message
    assert 'data/all/  (train_dataloader.dataset.data_prefix)\n' in message
    Path('data/all').mkdir(parents=True)
    Path('data/list.txt').touch()
    check_data(cfg)
    check_data(class_folders('data/all', with_label=False))
    check_data(class_folders('none', backend_args=dict(backend='petrel')))
    check_data(class_folders('s3://bucket/none'))


def test_missing_imagenet(workplace):
    dataset = dict(type='ImageNet', data_root='data/imagenet', split='val')
    cfg = dict(val_dataloader=dict(dataset=dataset))
    message = message_of(check_data, cfg)
    assert 'data/imagenet/val/CLASS/  (val_dataloader.dataset.data_root)' in message
    assert 'data/imagenet/train/CLASS and' in message and 'image-net.org' in message
    Path('data/imagenet/val').mkdir(parents=True)  # all in one folder
    assert 'val/CLASS/' in message_of(check_data, cfg)
    Path('data/imagenet/meta').mkdir()
    Path('data/imagenet/meta/val.txt').touch()  # which ImageNet finds by itself
    check_data(cfg)
    message = message_of(
        check_data,
        cfg | dict(train_dataloader=dict(dataset=dict(dataset, split='train'))),
    )
    assert 'data/imagenet/train/CLASS/  (' in message and 'val/CLASS/  (' not in message


def test_cifar10_may_be_missing_if_it_can_be_downloaded(workplace, monkeypatch):
    asked = []
    answers = [True, False]

    def answer(url):
        asked.append(url)
        return answers[len(asked) - 1]

    monkeypatch.setattr(IS_REACHABLE, answer)
    dataset = dict(type='CIFAR10', data_root='data/cifar10', split='train')
    cfg = dict(train_dataloader=dict(dataset=dataset))
    check_data(cfg)
    message = message_of(check_data, cfg)
    option = '(train_dataloader.dataset.data_root)'
    assert f'data/cifar10/cifar-10-batches-py/  {option}' in message
    assert asked[1] in message and 'tar -xzf cifar-10-python.tar.gz' in message
    dataset['download'] = False
    assert 'cifar-10-batches-py/  (' in message_of(check_data, cfg)
    folder = Path('data/cifar10/cifar-10-batches-py')
    folder.mkdir(parents=True)
    names = ['test_batch', *(f'data_batch_{i}' for i in range(1, 6))]
    for i, name in enumerate(names):
        message = message_of(check_data, cfg)
        assert f'/cifar-10-batches-py/: {6 - i} of 6 files' in message
        assert 'tar -xzf cifar-10-python.tar.gz -C data/cifar10' in message
        (folder / name).touch()
    check_data(cfg)
    assert len(asked) == 2


def test_cifar10_in_a_zip_file(workplace):
    dataset = dict(type='AnyCIFAR10', data_root='data/images.zip/', split='train')
    cfg = dict(train_dataloader=dict(dataset=dataset))
    message = message_of(check_data, cfg)
    assert 'data/images.zip  (train_dataloader.dataset.data_root)' in message
    Path('data').mkdir(exist_ok=True)
    Path('data/images.zip').touch()
    check_data(cfg)


def test_a_server_that_does_not_answer():
    assert not is_reachable('http://127.0.0.1:9/none')


@pytest.mark.parametrize(
    'name, path',
    [
        ('mini/convpool_pws_digits', 'data/digits_imagefolder/test/CLASS/'),
        ('imagenet/resnet50_pws_in1k', 'data/imagenet/val/CLASS/'),
        ('cifar10/convpool_pws_cifar10', 'data/cifar10/cifar-10-batches-py/'),
    ],
)
def test_missing_data_of_classification_configs(workplace, monkeypatch, name, path):
    pytest.importorskip('mmpretrain', reason='mmpretrain is not installed')
    monkeypatch.setattr(IS_REACHABLE, lambda url: False)
    message = message_of(check_data, load(name))
    assert re.search(rf'{path}  \(.*\bval_dataloader\.dataset\.data_', message)


def test_the_end_of_the_message_can_be_given(workplace):
    message = message_of(check_data, load(COCO_CONFIG), 'say --data')
    assert message.endswith('If the data is elsewhere, say --data.')
    assert '--cfg-options' in message_of(check_data, load(COCO_CONFIG))


@DATASETS.register_module(force=True)
class OwnCoco(CocoDataset):
    def load_data_list(self):
        return []


@METRICS.register_module(force=True)
class OwnMetric(CocoMetric):
    def __init__(self, ann_file, **kwargs):
        super().__init__(**kwargs)


def test_users_own_datasets_and_metrics_are_not_checked(workplace):
    dataset = dict(type='OwnCoco', ann_file='none', data_prefix=dict(img='none'))
    cfg = dict(
        train_dataloader=dict(dataset=dataset),
        val_evaluator=dict(type='OwnMetric', ann_file='none'),
    )
    check_data(cfg)
    cfg['val_evaluator']['type'] = 'CocoMetric'
    assert 'none  (val_evaluator.ann_file)' in message_of(check_data, cfg)


def test_segmentation_maps_are_checked_if_the_pipeline_reads_them(coco):
    dataset = load(COCO_CONFIG).train_dataloader.dataset
    dataset.data_prefix = dict(img='train2017/', seg='maps/')
    cfg = dict(train_dataloader=dict(dataset=dataset))
    check_data(cfg)
    dataset.pipeline[1].with_seg = True
    option = '(train_dataloader.dataset.data_prefix.seg)'
    assert f'data/coco/maps/  {option}' in message_of(check_data, cfg)
