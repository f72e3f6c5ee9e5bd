"""What MMEngine and MMDetection write into a checkpoint is loaded as data alone."""

from collections import OrderedDict
from pathlib import Path

import mmdet.engine  # noqa: F401 which registers its schedulers
import numpy as np
import pytest
import torch
from mmdet.registry import PARAM_SCHEDULERS as MMDET_SCHEDULERS
from mmengine.config import Config, ConfigDict
from mmengine.logging import MessageHub
from mmengine.registry import OPTIMIZERS, PARAM_SCHEDULERS
from torch import nn

from pws_mmdet import compat
from pws_mmdet.checkpoint.read import load_file

# What a scheduler takes, by its name without what it schedules
SCHEDULERS = dict(
    Constant=[dict()],
    CosineAnnealing=[dict(T_max=3)],
    CosineRestart=[dict(periods=[2, 2], restart_weights=[1, 1], eta_min=0.0)],
    Exponential=[dict(gamma=0.9)],
    Linear=[dict()],
    MultiStep=[dict(milestones=[1])],
    OneCycle=[
        dict(eta_max=0.1, total_steps=9, anneal_strategy=strategy)
        for strategy in ('cos', 'linear')
    ],
    Poly=[dict()],
    QuadraticWarmup=[dict(end=3)],
    ReduceOnPlateau=[dict(rule=rule) for rule in ('less', 'greater')],
    Step=[dict(step_size=1)],
)


@pytest.fixture(params=[True, False], ids=['allow-list', 'before torch 2.6'])
def reload(request, monkeypatch, tmp_path):
    """Save something, and load it as a checkpoint is loaded."""
    if request.param and not compat.HAS_ALLOW_LIST:
        pytest.skip('torch has none')
    monkeypatch.setattr(compat, 'HAS_ALLOW_LIST', request.param)

    def save_and_load(content):
        path = str(tmp_path / 'checkpoint.pth')
        torch.save(content, path)
        return load_file(path)

    return save_and_load


def test_all_schedulers(reload):
    registered = {**PARAM_SCHEDULERS.module_dict, **MMDET_SCHEDULERS.module_dict}
    registered.pop('_ParamScheduler', None)
    states = {}
    for name, cls in registered.items():
        suffixes = ('LR', 'Momentum', 'ParamScheduler')
        suffix = next(s for s in suffixes if name.endswith(s))
        for options in SCHEDULERS[name.removesuffix(suffix)]:
            optimizer = torch.optim.SGD(nn.Linear(2, 2).parameters(), 0.1, momentum=0.9)
            of = dict(param_name='lr') if suffix == 'ParamScheduler' else {}
            scheduler = cls(optimizer, **of, **options)
            optimizer.step()
            scheduler.step(*[dict(loss=1.0)] * ('Plateau' in name))
            states[f'{name} {options}'] = scheduler.state_dict()
    assert len(states) >= 30
    loaded = reload(dict(param_schedulers=states))['param_schedulers']
    assert loaded == states


def test_all_optimizers(reload):
    states = {}
    for name, cls in OPTIMIZERS.module_dict.items():
        if not getattr(cls, '__module__', '').startswith('torch.optim'):
            continue
        layer = nn.Embedding(4, 2, sparse='Sparse' in name)
        try:
            optimizer = cls(layer.parameters(), lr=0.1)
        except (RuntimeError, TypeError, ValueError):
            continue  # for parameters of other shapes

        def closure(layer=layer, optimizer=optimizer):
            optimizer.zero_grad()
            loss = layer(torch.tensor([1, 2])).sum()
            loss.backward()
            return loss

        optimizer.step(closure)
        states[name] = optimizer.state_dict()
    assert len(states) >= 10
    assert reload(dict(optimizer=states))['optimizer'].keys() == states.keys()


def test_metainfo_of_all_kinds(reload):
    config = Config(dict(metainfo=dict(classes=('a', 'b'), nested=dict(x=[dict(y=1)]))))
    meta = dict(
        dataset_meta=config.metainfo,
        of_a_dict=OrderedDict(x=np.float32(1)),
        sets={1, 2},
        root=Path('data/coco'),
        frozen=frozenset('ab'),
        arrays=[np.array(['a', 'bc']), np.ones(2, bool), np.int64(2)],
        size=torch.Size([1, 2]),
        dtype=torch.float16,
        device=torch.device('cpu'),
    )
    loaded = reload(dict(meta=meta, state_dict={}))['meta']
    assert type(loaded['dataset_meta']) is ConfigDict
    assert loaded['dataset_meta'].nested.x[0].y == 1
    for key in ('sets', 'root', 'frozen', 'size'):
        assert loaded[key] == meta[key]


def test_message_hub(reload):
    hub = MessageHub('checkpoint contents')
    hub.update_scalar('train/loss', torch.tensor(1.0))
    hub.update_scalars(dict(a=dict(value=np.float32(2), count=2), b=3.0))
    hub.update_info('best', np.float64(0.5))
    hub.update_info_dict(dict(seed=3, meta=ConfigDict(classes=('a',))))
    loaded = reload(dict(message_hub=hub.state_dict()))['message_hub']
    again = MessageHub('checkpoint contents, loaded')
    again.load_state_dict(loaded)
    assert again.get_scalar('train/loss').current() == 1
    assert again.get_info('meta').classes == ('a',)
