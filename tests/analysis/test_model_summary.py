import copy

import pytest
import torch
from mmcv.cnn import ConvAWS2d, ConvWS2d
from mmcv.ops import DeformConv2dPack, ModulatedDeformConv2dPack
from mmdet.models.necks.ssd_neck import L2Norm
from mmengine.config import Config
from mmengine.optim import OptimWrapper, OptimWrapperDict
from torch import nn
from torch.nn.utils.parametrizations import spectral_norm, weight_norm

from pws_mmdet import PWSConv2d
from pws_mmdet.analysis import summarize_model
from pws_mmdet.analysis.layer_kinds import KINDS
from pws_mmdet.analysis.model_findings import NO_DECAY
from pws_mmdet.layers import AnySizeInstanceNorm2d, NoNorm, SwitchableNorm2d, WNConv2d
from pws_mmdet.utils.config import find_image_size

PWS, REPARAMETRIZED, PLAIN, LINEAR, NORM, REST = KINDS


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1)
        self.shared = PWSConv2d(8, 8, 3, padding=1, gamma=1e-2)
        self.grouped = nn.Conv2d(8, 8, 3, padding=1, groups=4, bias=False)
        self.depthwise = PWSConv2d(8, 8, 3, padding=1, groups=8, alpha='layer')
        self.bn = nn.BatchNorm2d(8)
        self.frozen = PWSConv2d(8, 4, 1, stride=2, alpha='fixed').requires_grad_(False)
        self.up = nn.ConvTranspose2d(4, 6, 2, stride=2)
        self.wn = WNConv2d(6, 4, 1, g='trained')
        self.no_norm = NoNorm(4, bias=True)
        self.fc = nn.Linear(16, 5)

    def forward(self, x):
        x = self.shared(self.shared(self.conv(x)))
        x = self.frozen(self.bn(self.depthwise(self.grouped(x))))
        x = self.no_norm(self.wn(self.up(x))).flatten(2)
        x = x + torch.rand_like(x)
        return self.fc((x @ x.transpose(1, 2)).flatten(1))


# Kind, parameters, and multiply-adds for an image of 8 x 8 pixels
EXPECTED = {
    'conv': (PLAIN, 8 * 3 * 9 + 8, 8 * 8 * (8 * 3 * 9)),
    'shared': (PWS, 8 * 8 * 9 + 8 + 8, 2 * 8 * 8 * (8 * 8 * 9)),
    'grouped': (PLAIN, 8 * 2 * 9, 8 * 8 * (8 * 2 * 9)),
    'depthwise': (PWS, 8 * 9 + 1 + 1, 8 * 8 * (8 * 9)),
    'bn': (NORM, 8 + 8, 0),
    'frozen': (PWS, 4 * 8 + 4, 4 * 4 * (4 * 8)),
    'up': (PLAIN, 4 * 6 * 4 + 6, 4 * 4 * (4 * 6 * 4)),
    'wn': (REPARAMETRIZED, 4 * 6 + 4 + 4, 8 * 8 * (4 * 6)),
    'no_norm': (REST, 4, 0),
    'fc': (LINEAR, 5 * 16 + 5, 5 * 16),
}
MATMUL = 4 * 64 * 4


def image():
    return torch.rand(1, 3, 8, 8)


def test_kinds_parameters_and_macs_of_every_layer():
    net = Net()
    composition = summarize_model(net, image())
    found = {m.name: (m.kind, m.parameters, m.macs) for m in composition.layers}
    assert found == EXPECTED
    assert composition.other_macs == MATMUL
    assert [m.name for m in composition.layers if m.frozen] == ['frozen']
    types = {m.name: m.type for m in composition.layers}
    assert types['up'] == 'ConvTranspose2d' and types['wn'] == 'WNConv2d'

    *kinds, total = composition.kinds()
    assert [row['kind'] for row in kinds] == list(KINDS)
    for row in kinds:
        layers = [values for values in EXPECTED.values() if values[0] == row['kind']]
        assert row['layers'] == len(layers)
        assert row['parameters'] == sum(parameters for _, parameters, _ in layers)
        outside = MATMUL if row['kind'] == REST else 0
        assert row['macs'] == sum(macs for *_, macs in layers) + outside
        assert row['frozen'] == (row['kind'] == PWS)
    assert kinds[2]['types'] == dict(Conv2d=2, ConvTranspose2d=1)
    assert total['layers'] == len(EXPECTED)
    assert total['parameters'] == sum(p.numel() for p in net.parameters())
    assert total['macs'] == sum(row['macs'] for row in kinds)


def test_the_table():
    composition = summarize_model(Net(), image())
    head, *table = str(composition).split('\n\n')[0].splitlines()
    assert head.split() == ['layers', 'frozen', 'parameters', 'MACs']
    assert len(table) == len(KINDS) + 1
    assert len({line.index('%') for line in table}) == 1  # numbers are aligned
    # 470 of 1308 parameters, 24576 of 105984 MACs
    assert (
        table[2].split()
        == (
            'plain convolutions 3 0 470 35.9% 24.6 K 23.2% 2 Conv2d, 1 ConvTranspose2d'
        ).split()
    )
    assert table[-1].split() == 'total 10 1 1.31 K 100.0% 106 K 100.0%'.split()


def test_without_inputs_no_macs_are_measured(monkeypatch):
    monkeypatch.setattr(Net, 'forward', None)
    composition = summarize_model(Net())
    found = {m.name: (m.kind, m.parameters) for m in composition.layers}
    assert found == {name: values[:2] for name, values in EXPECTED.items()}
    assert composition.other_macs is None
    assert {m.macs for m in composition.layers} == {None}
    assert {row['macs'] for row in composition.kinds()} == {None}
    assert 'MACs' not in str(composition)


@pytest.mark.parametrize('channels', [3, 4], ids=['works', 'fails'])
def test_a_measurement_does_not_change_the_model(channels):
    net = Net()
    net.wn.eval()
    state = copy.deepcopy(net.state_dict())
    modes = [m.training for m in net.modules()]
    random_state = torch.get_rng_state()
    composition = summarize_model(net, torch.ones(1, channels, 8, 8))

    assert (composition.other_macs is None) == (channels == 4)
    torch.testing.assert_close(net.state_dict(), state, rtol=0, atol=0)
    assert [m.training for m in net.modules()] == modes
    assert torch.equal(torch.get_rng_state(), random_state)
    assert all(p.grad is None for p in net.parameters())
    for m in net.modules():
        assert not m._forward_hooks and not m._forward_pre_hooks


def test_the_error_of_a_forward_pass_is_a_finding():
    composition = summarize_model(Net(), torch.rand(1, 4, 8, 8))
    assert composition.findings[-1].startswith(
        'MACs: no forward pass of the given input: RuntimeError: '
    )
    assert '4 channels' in composition.findings[-1]
    assert len(composition.layers) == len(EXPECTED)
    assert composition.kinds()[-1]['macs'] is None


def test_keyword_arguments_reach_the_forward_pass():
    composition = summarize_model(Net(), dict(x=image()))
    assert composition.kinds()[-1]['macs'] is not None


NORMS = [
    nn.BatchNorm1d(4),
    nn.BatchNorm3d(4),
    nn.SyncBatchNorm(4),
    nn.GroupNorm(2, 4),
    nn.LayerNorm(4),
    nn.InstanceNorm2d(4),
    nn.LocalResponseNorm(2),
    SwitchableNorm2d(4),
    AnySizeInstanceNorm2d(4),
    L2Norm(4),
]
# A layer, its kind, and its number of parameters
OTHERS = [
    (NoNorm(4), None, 0),
    (NoNorm(4, bias=True), REST, 4),
    (nn.ReLU(), None, 0),
    (nn.Embedding(3, 4), REST, 12),
    (nn.Conv1d(2, 3, 3), PLAIN, 3 * 2 * 3 + 3),
    (nn.Conv3d(2, 3, 3), PLAIN, 3 * 2 * 27 + 3),
    (ConvWS2d(2, 3, 3), REPARAMETRIZED, 3 * 2 * 9 + 3),
    (ConvAWS2d(2, 3, 3), REPARAMETRIZED, 3 * 2 * 9 + 3),
    (weight_norm(nn.Conv2d(2, 3, 3)), REPARAMETRIZED, 3 * 2 * 9 + 3 + 3),
    (spectral_norm(nn.Conv2d(2, 3, 3)), REPARAMETRIZED, 3 * 2 * 9 + 3),
    (nn.utils.spectral_norm(nn.Conv2d(2, 3, 3)), REPARAMETRIZED, 3 * 2 * 9 + 3),
]


def name_of(value):
    return type(value).__name__ if isinstance(value, nn.Module) else ''


@pytest.mark.parametrize('norm', NORMS, ids=name_of)
def test_layers_that_normalize(norm):
    composition = summarize_model(nn.Sequential(nn.Conv2d(3, 4, 1), norm))
    assert [m.kind for m in composition.layers] == [PLAIN, NORM]
    assert composition.findings == ['NOT norm-free: 1 of 2 layers normalize outputs: 1']


@pytest.mark.parametrize('layer, kind, parameters', OTHERS, ids=name_of)
def test_layers_that_do_not_normalize(layer, kind, parameters):
    composition = summarize_model(nn.Sequential(layer))
    found = [(m.kind, m.parameters) for m in composition.layers]
    assert found == ([(kind, parameters)] if kind else [])
    assert composition.findings == ['Norm-free: no layer normalizes outputs']
    if kind == REPARAMETRIZED:  # torch's own class for it is not shown
        types = {'ConvWS2d', 'ConvAWS2d', 'Conv2d'}
        assert composition.layers[0].type in types


@pytest.mark.parametrize(
    'of_type, masks', [(DeformConv2dPack, 0), (ModulatedDeformConv2dPack, 1)]
)
def test_a_layer_inside_a_layer_counts_for_itself(of_type, masks):
    net = of_type(4, 6, 3, padding=1)
    composition = summarize_model(net, torch.rand(1, 4, 8, 8))
    macs = {m.type: m.macs for m in composition.layers}
    assert [m.kind for m in composition.layers] == [PLAIN, PLAIN]
    assert macs == {
        of_type.__name__: 64 * 6 * (4 * 9),
        # The filter has two offsets at each place, and maybe a mask.
        'Conv2d': 64 * (2 + masks) * 9 * (4 * 9),
    }


def test_shared_parameters_count_once():
    net = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), PWSConv2d(2, 2, 3))
    net[1].weight = net[0].weight
    net.append(net[2])
    net.append(PWSConv2d(2, 2, 3))
    net[4].alpha = net[2].alpha
    composition = summarize_model(net)
    found = [(m.name, m.parameters) for m in composition.layers]
    conv = 2 * 2 * 9 + 2
    assert found == [('0', 16 + 4), ('1', 4), ('2', conv + 2), ('4', conv)]
    assert composition.alphas == 2


def test_eval_mode_of_norm_layers():
    net = nn.Sequential(nn.BatchNorm2d(2), nn.BatchNorm2d(2), nn.GroupNorm(1, 2))
    finding = 'In eval mode, with running statistics: 1 of these'
    net[0].eval()
    net[2].eval()  # makes no difference to it
    assert summarize_model(net).findings[1:] == [finding]
    assert len(summarize_model(net.eval()).findings) == 1


def make_detector():
    net = nn.Module()
    net.backbone = nn.Sequential(
        nn.Conv2d(3, 4, 3),
        PWSConv2d(4, 4, 3, gamma=1e-3),
        PWSConv2d(4, 4, 3, keep_mean=True),
    )
    net.backbone[1].alpha.requires_grad_(False)
    net.backbone[2].mean[0] = 0.1
    net.head = PWSConv2d(4, 6, 3, gamma=0.1, relative_gamma=True, alpha='layer')
    net.predictor = nn.Conv2d(4, 6, 3)
    return net


def test_findings_about_pws():
    assert summarize_model(make_detector()).findings == [
        'Norm-free: no layer normalizes outputs',
        'gamma: 0.0001 to 0.001 in backbone; 0.00556 in head',  # 0.1 * 2 / 36
        'alpha: 9 values, 5 of them trained',
        'Not trained: backbone.1.alpha',
        'Filters keep a constant mean in 1 of 3 PWS layers: backbone.2',
        'Plain convolutions in a backbone with PWS: backbone.0',
    ]


def test_only_the_first_names_are_listed():
    net = nn.Sequential(*(nn.BatchNorm2d(1) for _ in range(5)))
    (finding,) = summarize_model(net).findings
    assert finding.endswith('5 of 5 layers normalize outputs: 0, 1, 2 and 2 more')


@pytest.mark.parametrize('wrap', ['optimizer', 'wrapper', 'dict of wrappers'])
def test_decayed_alphas(wrap):
    net = make_detector()
    others = [p for name, p in net.named_parameters() if 'head' not in name]
    optimizer = torch.optim.SGD(others, lr=0.1, weight_decay=1e-4)
    optimizer.add_param_group(dict(params=[net.head.alpha], weight_decay=0.0))
    if wrap != 'optimizer':
        optimizer = OptimWrapper(optimizer)
    if wrap == 'dict of wrappers':
        optimizer = OptimWrapperDict(all=optimizer)
    composition = summarize_model(net, optimizer=optimizer)
    # the frozen alpha of backbone.1 has no gradient, and stays as it is
    assert composition.decayed_alphas == ['backbone.2.alpha']
    assert (composition.alphas, composition.trained_alphas) == (9, 5)
    assert (
        'Weight decay pulls 1 of 3 alphas towards 0, unlike in the paper: '
        f'backbone.2.alpha. {NO_DECAY} switches it off'
    ) in composition.findings


def test_decayed_alphas_of_a_whole_part_are_named_by_the_part():
    net = nn.ModuleDict(
        dict(
            backbone=nn.Sequential(*(PWSConv2d(2, 2, 1) for _ in range(5))),
            head=nn.Sequential(*(PWSConv2d(2, 2, 1) for _ in range(5))),
        )
    )
    kept = net.head[0].alpha
    optimizer = torch.optim.SGD([kept], lr=0.1)
    others = [p for p in net.parameters() if p is not kept]
    optimizer.add_param_group(dict(params=others, weight_decay=0.1))
    findings = summarize_model(net, optimizer=optimizer).findings
    assert (
        'Weight decay pulls 9 of 10 alphas towards 0, unlike in the paper: all 5 of '
        'backbone, head.1.alpha, head.2.alpha, head.3.alpha, head.4.alpha. '
        f'{NO_DECAY} switches it off'
    ) in findings


def test_alphas_that_are_not_decayed():
    net = make_detector()
    optimizer = torch.optim.SGD([net.backbone[2].alpha], lr=0.1)
    composition = summarize_model(net, optimizer=optimizer)
    assert composition.decayed_alphas == []
    assert composition.trained_alphas == 4  # the head's is in no group
    text = 'alpha: 9 values, 4 of them trained, none decayed'
    assert text in composition.findings
    assert summarize_model(net).decayed_alphas is None


def test_a_wrapped_model_keeps_its_names():
    composition = summarize_model(nn.DataParallel(Net()))
    assert [m.name for m in composition.layers] == list(EXPECTED)


class Resize:
    """A config may name the class itself."""


RESIZE = dict(type='Resize', scale=(1333, 800), keep_ratio=True)


@pytest.mark.parametrize(
    'cfg, size',
    [
        (dict(), None),
        (dict(test_dataloader=None), None),
        (dict(test_dataloader=dict(dataset=dict(pipeline=[RESIZE]))), (800, 1333)),
        (dict(val_dataloader=dict(pipeline=[dict(type='mmdet.Resize', scale=64)])), 64),
        (dict(train_dataloader=dict(pipeline=[RESIZE])), (800, 1333)),
        (dict(test_dataloader=dict(pipeline=[dict(type=Resize, scale=8)])), 8),
        (
            dict(
                train_dataloader=dict(pipeline=[RESIZE]),
                test_dataloader=dict(pipeline=[dict(type='Resize', scale=(32, 16))]),
            ),
            (16, 32),
        ),
        (
            dict(
                test_dataloader=dict(
                    pipeline=[
                        dict(type='ResizeEdge', scale=256),
                        dict(type='CenterCrop', crop_size=224),
                    ]
                )
            ),
            224,
        ),
        (dict(test_dataloader=dict(type='Resize', scale_factor=2)), None),
    ],
)
def test_size_of_the_images(cfg, size):
    expected = (size, size) if isinstance(size, int) else size
    assert find_image_size(Config(cfg)) == expected
