"""The message about missing pretrained weights leads with a command that helps."""

import runpy
import shlex
import sys
from pathlib import Path

import mmdet
import pytest
from conftest import ROOT
from mmengine.config import Config
from mmengine.registry import MODELS

from pws_mmdet.engine.checks import check_pretrained

HEADLINE = 'configs/mask_rcnn_r50_fpn_pws_1x.py'
FROM_BN = 'configs/mask_rcnn_r50_fpn_pws_from_bn_1x.py'
PAPERS_WEIGHTS = 'checkpoints/resnet50_pws_in1k.pth'


def needs_a_file(config):
    checkpoint = Config.fromfile(config).get('model', {}).get('backbone', {})
    checkpoint = (checkpoint.get('init_cfg') or {}).get('checkpoint', '://')
    return '://' not in checkpoint


CONFIGS = [
    str(path.relative_to(ROOT))
    for path in sorted(ROOT.glob('configs/*.py'))
    if needs_a_file(path)
]


@pytest.fixture(autouse=True)
def in_root(monkeypatch):
    monkeypatch.chdir(ROOT)


def message_of(cfg):
    """The lines of the message; those of commands are indented."""
    with pytest.raises(FileNotFoundError) as error:
        check_pretrained(MODELS.build(cfg.model), cfg, resumes=False)
    return str(error.value).splitlines()


def command_in(line):
    """The words of a command in a message, whose program and config exist."""
    assert line.startswith('    ')
    program, *words = shlex.split(line)
    if program == 'python':
        program, *words = words
    assert Path(program).is_file() and Path(words[0]).is_file()
    return [program, *words]


@pytest.fixture
def parse_train(monkeypatch):
    """Return MMDetection's parser of the words after tools/train.py."""
    package = Path(mmdet.__file__).parent
    paths = package / '.mim/tools/train.py', package.parent / 'tools/train.py'
    path = next(path for path in paths if path.is_file())

    def parse(*words):
        monkeypatch.setattr(sys, 'argv', ['train.py', *words])
        return runpy.run_path(str(path))['parse_args']()

    return parse


@pytest.fixture
def converted(load_program, monkeypatch):
    """Return a function that tells what bn_to_pws.py makes of its words."""
    program = load_program('tools/model_converters/bn_to_pws.py')

    def run(path, *words):
        assert path == 'tools/model_converters/bn_to_pws.py'
        calls = []
        monkeypatch.setattr(
            program, 'convert_checkpoint', lambda **kw: calls.append(kw)
        )
        monkeypatch.setattr(sys, 'argv', [path, *words])
        program.main()
        return calls[0]

    return run


def with_options(config, options):
    cfg = Config.fromfile(config)
    cfg.merge_from_dict(options)
    return cfg


def test_the_configs_that_need_the_papers_weights():
    assert HEADLINE in CONFIGS
    for config in CONFIGS:
        assert Config.fromfile(config).model.backbone.init_cfg.checkpoint == (
            PAPERS_WEIGHTS
        )


@pytest.mark.parametrize('config', CONFIGS)
def test_the_papers_blocks_lead_to_a_training_with_stock_blocks(
    config, parse_train, converted
):
    """Its command makes of the config what the config that starts from BN is."""
    lines = message_of(Config.fromfile(config))
    assert lines[0] == (
        f'{PAPERS_WEIGHTS}, the pretrained weights of model.backbone, does not exist. '
        'This command trains without it:'
    )
    program, *words = command_in(lines[1])
    assert program == 'tools/train.py'
    args = parse_train(*words)
    assert args.config == config
    cfg = with_options(config, args.cfg_options)
    from_bn = Config.fromfile(FROM_BN)
    assert cfg.model.backbone == from_bn.model.backbone
    lr = Config.fromfile(config).optim_wrapper.optimizer.lr
    assert cfg.optim_wrapper.optimizer.lr == pytest.approx(lr / 10)
    if config == HEADLINE:
        assert cfg.model == from_bn.model
        assert cfg.optim_wrapper == from_bn.optim_wrapper
    check_pretrained(MODELS.build(cfg.model), cfg, resumes=False)

    ways = [line for line in lines[2:] if line.startswith('    ')]
    made = converted(*command_in(ways[0]))
    args = parse_train(*command_in(ways[1])[1:])
    cfg = with_options(config, args.cfg_options)
    checkpoint = cfg.model.backbone.init_cfg.pop('checkpoint')
    assert checkpoint == made['out'] and made['checkpoint'] == 'torchvision://resnet50'
    from_bn.model.backbone.init_cfg.pop('checkpoint')
    assert cfg.model.backbone == from_bn.model.backbone
    assert made['calibrate'] == 'data/coco/train2017/'
    network = with_options(config, made['cfg_options']).model
    network.backbone.pop('init_cfg')
    cfg.model.backbone.pop('init_cfg')
    assert network == cfg.model


def test_ways_without_torchvision_follow():
    text = '\n'.join(message_of(Config.fromfile(HEADLINE)))
    ways = (
        'model.backbone.init_cfg.checkpoint=FILE',
        'model.backbone.init_cfg=None model.backbone.frozen_stages=-1',
        'python tools/train.py configs/imagenet/resnet50_pws_in1k.py',
        'publish_backbone.py work_dirs/resnet50_pws_in1k/epoch_100.pth '
        + PAPERS_WEIGHTS,
    )
    places = [text.find(way) for way in ways]
    assert -1 not in places and places == sorted(places)


def test_the_launcher_of_the_training_is_in_the_command():
    cfg = with_options(HEADLINE, dict(launcher='pytorch', work_dir='runs/a'))
    lines = message_of(cfg)
    assert command_in(lines[1])[:3] == ['tools/dist_train.sh', HEADLINE, '1']
    assert 'runs/a/mask_rcnn_r50_fpn_pws_1x.py' in lines[2]


def test_stock_blocks_lead_to_the_conversion_that_makes_the_file(converted, tmp_path):
    """The paths are those of the user, with their blanks."""
    config = tmp_path / 'my config.py'
    images = f'{tmp_path}/my data'
    config.write_text(
        f'_base_ = {str(ROOT / FROM_BN)!r}\n'
        'model = dict(backbone=dict(init_cfg=dict('
        "checkpoint='my weights/b.pth')))\n"
        f'train_dataloader = dict(dataset=dict(data_root={images!r}))\n'
    )
    lines = message_of(Config.fromfile(str(config)))
    assert lines[0] == (
        'my weights/b.pth, the pretrained weights of model.backbone, does not exist. '
        'This command makes it:'
    )
    made = converted(*command_in(lines[1]))
    assert made['config'] == str(config)
    assert made['checkpoint'] == 'torchvision://resnet50'
    assert made['out'] == 'my weights/b.pth'
    assert made['calibrate'] == f'{images}/train2017/'
    assert made['cfg_options'] is None
    assert 'pre_activation' not in '\n'.join(lines)


def test_the_conversion_gets_the_options_of_the_training(converted):
    options = {
        'pre_activation': False,
        'stem_norm_cfg': None,
        'stem_conv_cfg.type': 'BiasConv2d',
        'depth': 18,
        'init_cfg.checkpoint': 'none.pth',
    }
    options = {f'model.backbone.{key}': value for key, value in options.items()}
    options['model.neck.in_channels'] = [64, 128, 256, 512]
    cfg = with_options(HEADLINE, options)
    made = converted(*command_in(message_of(cfg)[1]))
    assert made['checkpoint'] == 'torchvision://resnet18'
    network = with_options(HEADLINE, made['cfg_options']).model.backbone
    for part in (network, cfg.model.backbone):
        part.pop('init_cfg')
    assert network == cfg.model.backbone


def test_images_of_other_training_sets(converted):
    cfg = with_options(FROM_BN, {'model.backbone.init_cfg.checkpoint': 'none.pth'})
    dataset = cfg.train_dataloader.dataset
    for changed, calibrate in (
        (dict(type='RepeatDataset', dataset=dataset), 'data/coco/train2017/'),
        (dict(type='ConcatDataset', datasets=[dataset]), 'data/coco/train2017/'),
        (dict(type='ConcatDataset', datasets=[]), FROM_BN),
        (dict(type='Other'), FROM_BN),
    ):
        cfg.train_dataloader.dataset = changed
        made = converted(*command_in(message_of(cfg)[1]))
        assert made['calibrate'] == calibrate


@pytest.mark.parametrize(
    'changes',
    [
        dict(groups=32),
        dict(deep_stem=True),
        dict(base_channels=32),
        dict(conv_cfg=dict(type='PWS', alpha='layer')),
        dict(conv_cfg=None, norm_cfg=dict(type='BN')),
        dict(init_cfg=dict(type='Pretrained', checkpoint='none.pth', prefix='a.')),
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_no_command_where_no_weights_of_torchvision_fit(changes):
    cfg = Config.fromfile(HEADLINE)
    cfg.model.backbone.update(changes)
    lines = message_of(cfg)
    assert lines[0].endswith('does not exist. Choose one of these ways:')
    assert 'torchvision' not in '\n'.join(lines)
    assert any('init_cfg.checkpoint=FILE' in line for line in lines)
