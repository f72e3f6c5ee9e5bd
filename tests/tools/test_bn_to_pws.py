"""The command line of tools/model_converters/bn_to_pws.py."""

import sys
from pathlib import Path

import pytest

from pws_mmdet.convert.bn_checkpoint import ConvertedCheckpoint
from pws_mmdet.convert.layer import ConversionReport, ConvertedLayer


@pytest.fixture(scope='module')
def program(load_program):
    return load_program('tools/model_converters/bn_to_pws.py')


@pytest.fixture
def main(program, monkeypatch):
    def main(*words):
        monkeypatch.setattr(sys, 'argv', ['bn_to_pws.py', *map(str, words)])
        program.main()

    return main


def test_options_become_arguments(program, main, monkeypatch, capsys):
    calls = []

    def convert_checkpoint(config, checkpoint, out, **options):
        calls.append((config, checkpoint, out, options))
        report = ConversionReport([ConvertedLayer('conv')])
        return ConvertedCheckpoint(Path(out), 'backbone', report, ['fc.bias'])

    monkeypatch.setattr(program, 'convert_checkpoint', convert_checkpoint)
    paths = 'c.py', 'in.pth', 'out.pth'
    main(*paths)
    main(*paths, '--conv-ws', '--bn-eps', 1e-3, '--cfg-options', 'model.x=1')
    assert calls == [
        (*paths, dict(bn_eps=None, conv_ws=None, cfg_options=None)),
        (*paths, dict(bn_eps=1e-3, conv_ws=True, cfg_options={'model.x': 1})),
    ]
    assert capsys.readouterr().out.splitlines()[:4] == [
        'conv: converted',
        '1 convolution was converted',
        'written: out.pth, the backbone',
        'not used: fc.bias',
    ]


def test_an_error_is_one_line(main, tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        main(tmp_path / 'no.py', 'in.pth', tmp_path / 'out.pth')
    assert stop.value.code == 2
    assert 'no.py cannot be read' in capsys.readouterr().err
