"""Checkpoints are read from files, URLs and names, and code in them is refused."""

import functools
import http.server
import pickle
import sys
import threading
from collections import Counter

import mmengine.runner.checkpoint as mmengine_checkpoint
import pytest
import torch
from conftest import Hostile
from mmengine.logging import HistoryBuffer
from mmengine.runner import CheckpointLoader

from pws_mmdet import compat
from pws_mmdet.checkpoint.load import load_content, safe_loading


@pytest.fixture
def safe():
    """Make MMEngine's loader safe for a test."""
    with safe_loading():
        yield


@pytest.mark.usefixtures('unpickler', 'safe')
def test_a_pickle_with_code_is_refused_and_its_names_are_told(tmp_path):
    path, witness = tmp_path / 'hostile.pth', tmp_path / 'executed'
    torch.save(dict(state_dict={}, meta=Hostile(witness)), path)
    with pytest.raises(RuntimeError) as error:
        CheckpointLoader.load_checkpoint(str(path))
    assert 'hostile.pth was not loaded: ' in str(error.value)
    assert 'io.open' in str(error.value)
    assert not witness.exists()


@pytest.mark.usefixtures('unpickler', 'safe')
def test_a_truncated_file_is_refused(tmp_path):
    path = tmp_path / 'truncated.pth'
    torch.save(dict(state_dict=dict(w=torch.randn(1000))), path)
    path.write_bytes(path.read_bytes()[:-500])
    with pytest.raises(RuntimeError, match=r'truncated\.pth is not a readable'):
        CheckpointLoader.load_checkpoint(str(path))
    path.write_bytes(b'')
    with pytest.raises(RuntimeError, match=r'truncated\.pth is not a readable'):
        CheckpointLoader.load_checkpoint(str(path))


def test_a_missing_file_is_named():
    with pytest.raises(FileNotFoundError, match=r'no checkpoint .*none\.pth'):
        CheckpointLoader.load_checkpoint('none.pth')


def test_a_file_of_the_format_before_zip_is_read(tmp_path):
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


@pytest.mark.usefixtures('unpickler', 'safe')
def test_a_downloaded_file_is_checked_too(tmp_path, server, monkeypatch):
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


def test_the_loader_of_mmengine_is_safe_only_in_the_context():
    load, torch_load = CheckpointLoader.load_checkpoint, torch.load
    with pytest.raises(FileNotFoundError), safe_loading():
        assert CheckpointLoader.load_checkpoint != load
        assert torch.load is torch_load
        CheckpointLoader.load_checkpoint('none.pth')
    assert CheckpointLoader.load_checkpoint == load and torch.load is torch_load


def test_outside_of_the_context_mmengine_loads_what_it_did(tmp_path, monkeypatch):
    """It also loads its own checkpoints, which torch 2.6 and later refuse."""
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
def test_outside_of_the_context_errors_have_the_type_of_torch(tmp_path):
    path = tmp_path / 'hostile.pth'
    torch.save(Hostile(tmp_path / 'executed'), path)
    with pytest.raises(pickle.UnpicklingError, match=r'hostile\.pth was not loaded: '):
        CheckpointLoader.load_checkpoint(str(path))
    assert not (tmp_path / 'executed').exists()
    with pytest.raises(FileNotFoundError):
        CheckpointLoader.load_checkpoint('none.pth')


@pytest.mark.usefixtures('safe')
class TestNames:
    @pytest.fixture(autouse=True)
    def urls(self, monkeypatch):
        """Record the URLs instead of downloading them, and hide torchvision."""
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


def test_load_content_is_safe_for_files_and_urls(tmp_path, server, monkeypatch):
    monkeypatch.setenv('TORCH_HOME', str(tmp_path / 'cache'))
    content = dict(state_dict=dict(w=torch.ones(2)), meta=dict(epoch=1))
    torch.save(content, tmp_path / 'net.pth')
    torch.save(Hostile(tmp_path / 'executed'), tmp_path / 'hostile.pth')
    for place in (str(tmp_path), server):
        assert load_content(f'{place}/net.pth')['meta'] == dict(epoch=1)
        with pytest.raises(RuntimeError, match=r'hostile\.pth was not loaded: '):
            load_content(f'{place}/hostile.pth')
    assert not (tmp_path / 'executed').exists()
