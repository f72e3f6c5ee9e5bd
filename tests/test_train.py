"""How tools/train.py and tools/test.py tell errors."""

import argparse
import runpy
import sys

import mmengine.config
import mmengine.runner
import pytest
import torch
from conftest import ROOT
from mmengine.hooks import Hook
from mmengine.registry import HOOKS

SSD = 'configs/mini/ssd96_vgg16_pws_digits.py'


@pytest.fixture
def end(monkeypatch, capsys, tmp_path):
    """Return a function that runs a program and returns its status and its stderr."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv('LOCAL_RANK', '0')
    monkeypatch.delenv('PWS_DEBUG', raising=False)

    def host_classes():
        error = argparse.ArgumentParser.error
        return mmengine.runner.Runner, mmengine.config.DictAction, error

    before = host_classes()

    def run(program, *args):
        monkeypatch.setattr(sys, 'argv', [program, *map(str, args)])
        with pytest.raises(SystemExit) as stop:
            runpy.run_path(str(ROOT / 'tools' / program), run_name='__main__')
        assert host_classes() == before
        return stop.value.code, capsys.readouterr().err

    return run


@pytest.mark.parametrize('program', ['train.py', 'test.py'])
def test_a_config_that_cannot_be_read_is_named(end, tmp_path, program):
    checkpoint = ['none.pth'] * (program == 'test.py')
    code, error = end(program, 'none.py', *checkpoint)
    assert code == 2 and 'none.py cannot be read: FileNotFoundError: ' in error
    assert f'{program} stops; PWS_DEBUG=1 shows where:\n' in error
    (tmp_path / 'broken.py').write_text('model = 1 / 0')
    code, error = end(program, 'broken.py', *checkpoint)
    assert code == 2
    assert 'broken.py cannot be read: ZeroDivisionError: division by zero' in error
    (tmp_path / 'syntax.py').write_text('model = (')
    code, error = end(program, 'syntax.py', *checkpoint)
    assert code == 2 and 'syntax.py cannot be read: ' in error
    (tmp_path / 'nothing.py').write_text('x = 1')
    assert end(program, 'nothing.py', *checkpoint)[0] == 2


@pytest.mark.parametrize('program', ['train.py', 'test.py'])
def test_wrong_options_are_told(end, program):
    checkpoint = ['none.pth'] * (program == 'test.py')
    code, error = end(program, ROOT / SSD, *checkpoint, '--cfg-options', 'model')
    assert code == 2 and "must be KEY=VALUE ..., got 'model'" in error
    options = ['--cfg-options', 'model.type=None1']
    code, error = end(program, ROOT / SSD, *checkpoint, *options)
    assert code == 2 and 'KeyError' in error and 'None1' in error


def test_missing_data_and_wrong_checkpoints_are_told(end, digits, tmp_path):
    code, error = end('train.py', ROOT / SSD)
    assert code == 2
    assert '\nFileNotFoundError: Data that the config names is missing' in error
    (tmp_path / 'data').mkdir()
    (tmp_path / 'data/digits').symlink_to(digits)
    code, error = end('test.py', ROOT / SSD, 'none.pth')
    assert code == 2
    assert '\nFileNotFoundError: There is no checkpoint none.pth' in error
    torch.save(dict(state_dict=dict(w=torch.ones(1))), tmp_path / 'other.pth')
    code, error = end('test.py', ROOT / SSD, 'other.pth')
    assert code == 2 and 'ValueError: other.pth cannot be loaded: it is of' in error


def test_pws_debug_shows_the_traceback(end, monkeypatch):
    monkeypatch.setenv('PWS_DEBUG', '1')
    with pytest.raises(FileNotFoundError, match='none.py'):
        end('train.py', 'none.py')


@HOOKS.register_module()
class FailingHook(Hook):
    def before_train_iter(self, *args, **kwargs):
        raise ValueError('in the first step')


def test_an_error_in_training_keeps_its_traceback(end, digits, tmp_path):
    (tmp_path / 'data').mkdir()
    (tmp_path / 'data/digits').symlink_to(digits)
    (tmp_path / 'config.py').write_text(
        f'_base_ = {str(ROOT / SSD)!r}\n'
        'train_dataloader = dict(num_workers=0, persistent_workers=False)\n'
        "custom_hooks = [dict(type='FailingHook')]\n"
    )
    with pytest.raises(ValueError, match='in the first step'):
        end('train.py', 'config.py')
