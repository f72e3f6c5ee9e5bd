"""The message about missing pretrained weights leads with a command that helps."""

import runpy
import shlex
import sys
from pathlib import Path

import mmdet
import pytest
import torch
from conftest import ROOT
from mmdet.models.backbones import ResNet
from mmengine.config import Config
from mmengine.registry import MODELS
from torch import nn

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


def config_of(line, parse):
    """The config that the training command of a message trains."""
    program, *words = command_in(line)
    assert program == 'tools/train.py'
    args = parse(*words)
    return with_options(args.config, args.cfg_options)


@pytest.mark.parametrize('config', CONFIGS)
def test_the_papers_blocks_lead_to_a_training_with_stock_blocks(config, parse_train):
    """The backbone becomes that of the config that starts from BN; all else stays."""
    old = Config.fromfile(config)
    lines = message_of(old)
    assert lines[0] == (
        f'{PAPERS_WEIGHTS}, the pretrained weights of model.backbone, does not exist. '
        'This command trains without it:'
    )
    cfg = config_of(lines[1], parse_train)
    assert cfg.model.backbone == Config.fromfile(FROM_BN).model.backbone
    check_pretrained(MODELS.build(cfg.model), cfg, resumes=False)
    assert 'pre_activation' in lines[2]
    cfg.model.backbone = old.model.backbone
    assert cfg.to_dict() == old.to_dict()


@pytest.mark.parametrize('conv_cfg', [dict(type='PWS', gamma=1e-3), None])
def test_the_network_of_the_command_starts_from_bn_and_trains(
    conv_cfg, parse_train, tmp_path, monkeypatch
):
    """Without a conv_cfg in the config, the network has PWS by default.

    The paths are those of the user, with their blanks.
    """
    config = tmp_path / 'my config.py'
    conv_cfg = f'conv_cfg={conv_cfg!r}, ' if conv_cfg else ''
    config.write_text(
        "model = dict(type='RetinaNet', backbone=dict(\n"
        "    type='PWSResNet', depth=18, pre_activation=False, stem_norm_cfg=None,\n"
        f"    {conv_cfg}init_cfg=dict(type='Pretrained', checkpoint='my/b.pth')))\n"
    )
    cfg = Config.fromfile(str(config))
    with pytest.raises(FileNotFoundError) as error:
        check_pretrained(nn.ModuleDict(dict(backbone=build_backbone(cfg))), cfg, False)
    lines = str(error.value).splitlines()
    assert lines[0].startswith('my/b.pth, the pretrained weights of model.backbone')
    assert 'pre_activation' not in '\n'.join(lines)

    bn = ResNet(18)
    bn.eval()
    urls = []

    def load_url(url, **options):
        urls.append(url.rpartition('/')[2])
        return {**bn.state_dict(), 'fc.weight': torch.zeros(2, 512)}

    monkeypatch.setattr('mmengine.runner.checkpoint.load_url', load_url)
    net = build_backbone(config_of(lines[1], parse_train))
    net.init_weights()
    assert urls == ['resnet18-f37072fd.pth']
    net.eval()
    x = torch.randn(1, 3, 64, 64)
    for made, wanted in zip(net(x), bn(x), strict=True):
        assert (made - wanted).abs().max() <= 1e-4 * wanted.abs().max()
    sum(y.square().mean() for y in net(x)).backward()
    trained = [p.grad for p in net.parameters() if p.requires_grad]
    assert all(grad.isfinite().all() and grad.any() for grad in trained)


def build_backbone(cfg):
    return MODELS.build(cfg.model.backbone)


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
