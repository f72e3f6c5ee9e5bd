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
        report = ConversionReport([ConvertedLayer('conv', 'fitted', 0.5)])
        return ConvertedCheckpoint(Path(out), 'backbone', 7, report, ['fc.bias'])

    monkeypatch.setattr(program, 'convert_checkpoint', convert_checkpoint)
    options = ['--calibrate', 'folder', '--num-images', 7, '--max-scale', 2]
    options += ['--conv-ws', '--unaligned', 'a', 'b', '--cfg-options', 'model.x=1']
    main('c.py', 'in.pth', 'out.pth', *options)
    [(config, checkpoint, out, given)] = calls
    assert (config, checkpoint, out) == ('c.py', 'in.pth', 'out.pth')
    assert given == dict(
        calibrate='folder',
        num_images=7,
        batch_size=4,
        seed=0,
        max_scale=2.0,
        bn_eps=None,
        conv_ws=True,
        unaligned=['a', 'b'],
        device='cpu',
        force=False,
        cfg_options={'model.x': 1},
    )
    assert capsys.readouterr().out.splitlines() == [
        'conv: fitted, relative error 0.500',
        '1 convolutions were converted. Without images it is not known how good the '
        'network is',
        'written: out.pth, the backbone, with 7 images',
        'not used: fc.bias',
    ]


def test_an_error_is_one_line(main, tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        main(tmp_path / 'no.py', 'in.pth', tmp_path / 'out.pth', '--batch-size', 0)
    assert stop.value.code == 2
    assert 'no.py cannot be read' in capsys.readouterr().err
