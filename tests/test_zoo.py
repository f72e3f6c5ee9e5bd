"""Tests of docs/zoo.md: its detectors are norm-free, train, and can be fused."""

import re
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from conftest import ROOT
from mmdet.registry import MODELS
from mmdet.testing import demo_mm_inputs
from mmengine.config import Config
from mmengine.logging import MessageHub
from mmengine.optim import OptimWrapper
from mmengine.utils import get_installed_path
from torch import Tensor

from pws_mmdet import PWSConv2d, fuse_pws, summarize_model
from pws_mmdet.analysis.layer_kinds import NORM
from pws_mmdet.convert import norm_free_model
from pws_mmdet.engine import PWSAlphaInitHook

ROW = re.compile(r'^\| (?P<name>[^|]+?) \| `(?P<config>\S+)` \| (?P<pws>\d+) \| ')
PAGE = (ROOT / 'docs/zoo.md').read_text().splitlines()
ROWS = [line.strip('| ').split(' | ') for line in PAGE if ROW.match(line)]


def norm_free(config):
    # By its path, because MMEngine allows no + in the name of an installed config.
    cfg = Config.fromfile(Path(get_installed_path('mmdet'), '.mim/configs', config))
    conv_cfg = dict(type='PWS', gamma=1e-4)
    head_conv_cfg = dict(type='PWS', gamma=0.1, relative_gamma=True)
    model, _ = norm_free_model(cfg.model, conv_cfg, head_conv_cfg)
    without_downloads(model)
    if 'batch_augments' in model.data_preprocessor:
        model.data_preprocessor.batch_augments = None  # they pad to 1024 pixels
    return MODELS.build(model)


def without_downloads(cfg):
    for value in cfg.values() if isinstance(cfg, dict) else cfg:
        if isinstance(value, (dict, list, tuple)):
            without_downloads(value)
    if isinstance(cfg, dict) and 'checkpoint' in (cfg.get('init_cfg') or {}):
        cfg['init_cfg'] = None


def tensors(value):
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, (list, tuple)):
        return [tensor for item in value for tensor in tensors(item)]
    return []


def assert_close(a, b):
    torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4 * b.abs().max().item())


@contextmanager
def compared(convs, fused):
    """Compare the first call of each convolution in two networks, heads included."""
    called = set()

    def compare(name, x, y):
        if name not in called and len(x):
            called.add(name)
            with torch.no_grad():
                assert_close(fused.get_submodule(name)(x), y)

    hooks = [
        conv.register_forward_hook(lambda _, x, y, name=name: compare(name, x[0], y))
        for name, conv in convs.items()
    ]
    yield called
    for hook in hooks:
        hook.remove()


def test_the_page_has_its_rows():
    assert len(ROWS) >= 25
    assert len({config for _, config, *_ in ROWS}) == len(ROWS)


@pytest.mark.slow
@pytest.mark.parametrize('row', ROWS, ids=[row[0].replace(' ', '-') for row in ROWS])
def test_detector(row):
    _, config, pws, norms, *_ = row
    model = norm_free(config.strip('`'))
    model.init_weights()
    convs = {n: m for n, m in model.named_modules() if isinstance(m, PWSConv2d)}
    layers = summarize_model(model).layers
    assert len(convs) == int(pws)
    assert sum(layer.kind == NORM for layer in layers) == int(norms.split()[0])

    batch = demo_mm_inputs(
        1,
        [[3, 320, 320]],  # DDOD needs this size: it has feature maps of 1/128
        num_items=[3],
        num_classes=4,
        with_mask=model.with_mask,
        with_semantic=True,
    )
    MessageHub.get_current_instance().update_info('epoch', 0)  # TOOD reads it
    optim_wrapper = OptimWrapper(torch.optim.SGD(model.parameters(), lr=1e-2))
    runner = SimpleNamespace(model=model, optim_wrapper=optim_wrapper, iter=0)
    PWSAlphaInitHook().before_train_iter(runner, 0, batch)
    inputs = model.data_preprocessor(batch, True)
    model.eval()
    fused = fuse_pws(model)
    assert not any(isinstance(m, PWSConv2d) for m in fused.modules())
    with torch.no_grad():
        made, wanted = (
            tensors(net.extract_feat(inputs['inputs'])) for net in (fused, model)
        )
    assert made and len(made) == len(wanted)
    for a, b in zip(made, wanted, strict=True):
        assert_close(a, b)

    model.train()
    with compared(convs, fused) as called:
        loss, _ = model.parse_losses(model(**inputs, mode='loss'))
    assert len(called) >= 0.9 * len(convs)  # TOOD reads some weights without a call
    loss.backward()
    assert loss.isfinite()
    learned = [m for m in convs.values() if m.weight.requires_grad]
    reached = [m for m in learned if m.weight.grad is not None]
    assert len(reached) >= 0.9 * len(learned)  # a branch may see no object
    for conv in reached:
        assert conv.weight.grad.isfinite().all()
        mean = conv.weight.grad.flatten(1).mean(1)
        scale = conv.weight.grad.abs().max()
        assert mean.abs().max() <= 1e-4 * scale + 1e-12  # equation (13)
