"""A checkpoint is read from a file, a URL or a name, and as data alone."""

import functools
import http.server
import pickle
import sys
import threading
from collections import Counter

import mmengine.runner.checkpoint as mmengine_checkpoint
import numpy as np
import pytest
import torch
from conftest import Hostile
from mmengine.logging import HistoryBuffer
from mmengine.runner import CheckpointLoader

from pws_mmdet import compat
from pws_mmdet.checkpoint.read import load_file, safe_loading


@pytest.fixture(params=[True, False], ids=['allow-list', 'before torch 2.6'])
def way(request, monkeypatch):
    """Before torch 2.6 no list can be extended by what MMEngine pickles."""
    if request.param and not compat.HAS_ALLOW_LIST:
        pytest.skip('torch is older than 2.6')
    monkeypatch.setattr(compat, 'HAS_ALLOW_LIST', request.param)
    if not request.param:
        name = 'get_unsafe_globals_in_checkpoint'
        monkeypatch.delattr(torch.serialization, name, raising=False)
    with safe_loading():
        yield


@pytest.mark.usefixtures('way')
@pytest.mark.parametrize('zipped', [True, False])
def test_mmengines_own_records_load(tmp_path, zipped):
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
    path = str(tmp_path / 'checkpoint.pth')
    torch.save(values, path, _use_new_zipfile_serialization=zipped)
    loaded = CheckpointLoader.load_checkpoint(path)
    assert loaded['buffer'].mean() == 1.5
    assert loaded['statistics'] == values['statistics']
    assert loaded['scalars'] == values['scalars']
    assert np.array_equal(loaded['array'], values['array'])
    assert loaded['step'] == values['step']
    torch.testing.assert_close(loaded['weights'], values['weights'])


@pytest.mark.usefixtures('way')
def test_hostile_pickles_are_refused_by_name(tmp_path):
    path, witness = tmp_path / 'hostile.pth', tmp_path / 'executed'
    torch.save(dict(state_dict={}, meta=Hostile(witness)), path)
    with pytest.raises(RuntimeError) as error:
        CheckpointLoader.load_checkpoint(str(path))
    assert 'hostile.pth was not loaded: ' in str(error.value)
    assert 'io.open' in str(error.value)
    assert not witness.exists()


@pytest.mark.usefixtures('way')
@pytest.mark.parametrize(
    'owner, name',
    [(HistoryBuffer, '__init__'), (HistoryBuffer, '__subclasses__'), (dict, 'mean')],
)
def test_getattr_reaches_the_statistics_only(tmp_path, owner, name):
    class Getattr:
        def __reduce__(self):
            return getattr, (owner, name)

    path = str(tmp_path / 'getattr.pth')
    torch.save(Getattr(), path)
    with pytest.raises(RuntimeError, match='getattr.pth was not loaded'):
        CheckpointLoader.load_checkpoint(path)


@pytest.mark.skipif(not compat.HAS_ALLOW_LIST, reason='torch has no allow-list')
def test_getattr_on_torchs_own_list_changes_nothing(tmp_path):
    """The forks' MMEngine puts it there, and so may anybody."""

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


@pytest.mark.usefixtures('way')
def test_truncated(tmp_path):
    path = tmp_path / 'truncated.pth'
    torch.save(dict(state_dict=dict(w=torch.randn(1000))), path)
    path.write_bytes(path.read_bytes()[:-500])
    with pytest.raises(RuntimeError, match=r'truncated\.pth is not a readable'):
        CheckpointLoader.load_checkpoint(str(path))
    path.write_bytes(b'')
    with pytest.raises(RuntimeError, match=r'truncated\.pth is not a readable'):
        CheckpointLoader.load_checkpoint(str(path))


def test_missing():
    with pytest.raises(FileNotFoundError, match=r'no checkpoint .*none\.pth'):
        CheckpointLoader.load_checkpoint('none.pth')


def test_weights_without_a_zip_file(tmp_path):
    path = str(tmp_path / 'old.pth')
    torch.save(dict(w=torch.ones(2)), path, _use_new_zipfile_serialization=False)
    assert CheckpointLoader.load_checkpoint(path)['w'].sum() == 2


@pytest.fixture
def server(tmp_path):
    class Handler(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *args):
            super().__init__(*args, directory=str(tmp_path))

        def log_message(self, *args):
            pass

    with http.server.HTTPServer(('127.0.0.1', 0), Handler) as httpd:
        threading.Thread(target=httpd.serve_forever, daemon=True).start()
        yield f'http://127.0.0.1:{httpd.server_port}'
        httpd.shutdown()


@pytest.mark.usefixtures('way')
def test_downloads(tmp_path, server, monkeypatch):
    monkeypatch.setenv('TORCH_HOME', str(tmp_path / 'cache'))
    witness = tmp_path / 'executed'
    torch.save(dict(w=torch.ones(2)), tmp_path / 'good.pth')
    torch.save(Hostile(witness), tmp_path / 'hostile.pth')
    load = CheckpointLoader.load_checkpoint
    assert load(f'{server}/good.pth', 'cpu')['w'].sum() == 2
    with pytest.raises(RuntimeError, match=r'hostile\.pth was not loaded: .*open'):
        load(f'{server}/hostile.pth', 'cpu')
    assert not witness.exists()
    with pytest.raises(ConnectionError, match=r'none\.pth could not be downloaded'):
        load(f'{server}/none.pth', 'cpu')
    (tmp_path / 'good.pth').unlink()  # it is in the cache
    assert load(f'{server}/good.pth', 'cpu')['w'].sum() == 2


def test_only_in_its_context():
    load, torch_load = CheckpointLoader.load_checkpoint, torch.load
    with pytest.raises(FileNotFoundError), safe_loading():
        assert CheckpointLoader.load_checkpoint != load
        assert torch.load is torch_load
        CheckpointLoader.load_checkpoint('none.pth')
    assert CheckpointLoader.load_checkpoint == load and torch.load is torch_load


def test_outside_of_it_mmengine_loads_what_it_did(tmp_path, monkeypatch):
    """And its own checkpoints, which torch refuses since 2.6."""
    path = str(tmp_path / 'own.pth')
    torch.save(dict(buffer=HistoryBuffer([1.0], [1])), path)
    assert CheckpointLoader.load_checkpoint(path)['buffer'].mean() == 1
    torch.save(dict(counts=Counter('a'), path=tmp_path), path)
    load = functools.partial(torch.load, weights_only=False)  # as some people do
    monkeypatch.setattr(torch, 'load', load)
    assert CheckpointLoader.load_checkpoint(path)['path'] == tmp_path


@pytest.mark.skipif(
    not compat.HAS_ALLOW_LIST or hasattr(mmengine_checkpoint, '_safe_torch_load'),
    reason='this torch, or the MMEngine of the forks, loads anything by itself',
)
def test_outside_of_it_errors_have_the_type_that_they_had(tmp_path):
    path = tmp_path / 'hostile.pth'
    torch.save(Hostile(tmp_path / 'executed'), path)
    with pytest.raises(pickle.UnpicklingError, match=r'hostile\.pth was not loaded: '):
        CheckpointLoader.load_checkpoint(str(path))
    assert not (tmp_path / 'executed').exists()
    with pytest.raises(FileNotFoundError):
        CheckpointLoader.load_checkpoint('none.pth')


@pytest.fixture
def safe():
    with safe_loading():
        yield


@pytest.mark.usefixtures('safe')
class TestNames:
    @pytest.fixture(autouse=True)
    def urls(self, monkeypatch):
        """What would be downloaded; and there is no torchvision."""
        monkeypatch.setitem(sys.modules, 'torchvision', None)
        urls = []
        monkeypatch.setattr(
            'mmengine.runner.checkpoint.load_url', lambda url, **_: urls.append(url)
        )
        return urls

    @pytest.mark.parametrize('scheme', ['torchvision', 'modelzoo'])
    def test_torchvision_is_not_needed(self, urls, scheme):
        CheckpointLoader.load_checkpoint(f'{scheme}://resnet50')
        assert urls == ['https://download.pytorch.org/models/resnet50-0676ba61.pth']

    def test_other_weights_need_torchvision(self, urls, monkeypatch):
        name = 'torchvision://resnet50.imagenet1k_v2'
        with pytest.raises(ValueError, match=r'mean .*resnet50.*needs torchvision'):
            CheckpointLoader.load_checkpoint(name)
        monkeypatch.setattr(
            'mmengine.runner.checkpoint.get_torchvision_models',
            lambda: {'resnet50.imagenet1k_v2': 'a url'},
        )
        CheckpointLoader.load_checkpoint(name)
        assert urls == ['a url']

    @pytest.mark.parametrize(
        'name, meant',
        [
            ('torchvision://resnet5', 'resnet50'),
            ('open-mmlab://vgg16_cafe', 'vgg16_caffe'),
            ('openmmlab://detectron2/resnet50_cafe', 'detectron2/resnet50_caffe'),
            ('mmcls://vgg111', 'vgg11'),
        ],
    )
    def test_unknown_names(self, urls, name, meant):
        scheme, wrong = name.split('://')
        with pytest.raises(ValueError, match='Did you mean') as error:
            CheckpointLoader.load_checkpoint(name)
        text = str(error.value)
        assert f'{scheme}:// has no weights named {wrong!r}' in text and meant in text
        assert not urls

    def test_known_names_go_the_way_they_went(self, urls):
        CheckpointLoader.load_checkpoint('open-mmlab://vgg16_caffe')
        assert urls[0].endswith('.pth')
