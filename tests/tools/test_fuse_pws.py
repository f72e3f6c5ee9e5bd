"""The command line of tools/model_converters/fuse_pws.py."""

import sys
from pathlib import Path

import pytest


@pytest.fixture(scope='module')
def program(load_program):
    return load_program('tools/model_converters/fuse_pws.py')


def test_options_become_arguments(program, monkeypatch, capsys):
    calls = []

    def fuse_checkpoint(**arguments):
        calls.append(arguments)
        return Path('out/c.py'), Path('out/c.pth')

    monkeypatch.setattr(program, 'fuse_checkpoint', fuse_checkpoint)
    words = ['c.py', 'in.pth', 'out', '--cfg-options', 'model.test_cfg.max_per_img=7']
    monkeypatch.setattr(sys, 'argv', ['fuse_pws.py', *words])
    program.main()
    options = {'model.test_cfg.max_per_img': 7}
    assert calls == [
        dict(config='c.py', checkpoint='in.pth', out_dir='out', cfg_options=options)
    ]
    expected = 'config:     out/c.py\ncheckpoint: out/c.pth\n'
    assert capsys.readouterr().out == expected


def test_an_error_is_one_line(program, tmp_path, monkeypatch, capsys):
    words = [str(tmp_path / 'no.py'), 'in.pth', str(tmp_path / 'out')]
    monkeypatch.setattr(sys, 'argv', ['fuse_pws.py', *words])
    with pytest.raises(SystemExit) as stop:
        program.main()
    assert stop.value.code == 2
    assert 'no.py cannot be read' in capsys.readouterr().err
