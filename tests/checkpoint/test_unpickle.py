"""All that MMEngine and MMDetection write into a checkpoint is on the allow-list."""

from collections import Counter, OrderedDict
from pathlib import Path

import mmdet.engine  # noqa: F401 which registers its schedulers
import numpy as np
import pytest
import torch
from mmdet.registry import PARAM_SCHEDULERS as MMDET_SCHEDULERS
from mmengine.config import Config, ConfigDict
from mmengine.logging import HistoryBuffer, MessageHub
from mmengine.registry import OPTIMIZERS, PARAM_SCHEDULERS
from torch import nn

from pws_mmdet import compat
from pws_mmdet.checkpoint.load import load_file

# Arguments of each scheduler, by its name without LR, Momentum or ParamScheduler
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


@pytest.fixture
def reload(unpickler, tmp_path):
    """Return a function that saves a checkpoint and loads it again."""

    def save_and_load(content, **options):
        path = str(tmp_path / 'checkpoint.pth')
        torch.save(content, path, **options)
        return load_file(path)

    return save_and_load


@pytest.mark.parametrize('zipped', [True, False])
def test_the_log_history_of_mmengine(reload, zipped):
    buffer = HistoryBuffer([1.0, 2.0], [1, 1])
    values = dict(
        buffer=buffer,
        statistics=dict(HistoryBuffer._statistics_methods),
        scalars=[
            np.float64(0.5),
            np.int64(3),
            np.uint32(7),
            np.float32(1),
            np.bool_(1),
        ],
        array=np.arange(3.0),
        step=slice(0, 3),
        weights=torch.nn.Linear(2, 2).half().state_dict(),
    )
    loaded = reload(values, _use_new_zipfile_serialization=zipped)
    assert loaded['buffer'].mean() == 1.5
    assert loaded['statistics'] == values['statistics']
    assert loaded['scalars'] == values['scalars']
    assert np.array_equal(loaded['array'], values['array'])
    assert loaded['step'] == values['step']
    torch.testing.assert_close(loaded['weights'], values['weights'])


@pytest.mark.parametrize(
    'owner, name',
    [(HistoryBuffer, '__init__'), (HistoryBuffer, '__subclasses__'), (dict, 'mean')],
)
def test_getattr_of_anything_else_is_refused(reload, owner, name):
    class Getattr:
        def __reduce__(self):
            return getattr, (owner, name)

    with pytest.raises(RuntimeError, match='checkpoint.pth was not loaded'):
        reload(Getattr())


@pytest.mark.skipif(not compat.HAS_ALLOW_LIST, reason='torch has no allow-list')
def test_getattr_is_refused_where_torch_allows_it(tmp_path):
    """The MMEngine of the forks puts getattr on torch's own allow-list."""

    class Getattr:
        def __reduce__(self):
            return getattr, (HistoryBuffer, '__subclasses__')

    path = str(tmp_path / 'getattr.pth')
    torch.save(Getattr(), path)
    entries = [getattr, HistoryBuffer, Counter, (Getattr, 'a.b')]
    before = torch.serialization.get_safe_globals()
    with torch.serialization.safe_globals(entries):
        within = torch.serialization.get_safe_globals()
        for _ in range(5):
            with pytest.raises(RuntimeError, match='getattr.pth was not loaded'):
                load_file(path)
        assert set(torch.serialization.get_safe_globals()) == set(within)
    assert set(torch.serialization.get_safe_globals()) == set(before)


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
            continue  # it needs parameters of other shapes

        def closure(layer=layer, optimizer=optimizer):
            optimizer.zero_grad()
            loss = layer(torch.tensor([1, 2])).sum()
            loss.backward()
            return loss

        optimizer.step(closure)
        states[name] = optimizer.state_dict()
    assert len(states) >= 10
    assert reload(dict(optimizer=states))['optimizer'].keys() == states.keys()


def test_all_kinds_of_metainfo(reload):
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
