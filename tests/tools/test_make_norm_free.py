"""The command line of tools/misc/make_norm_free.py."""

import sys

import pytest


@pytest.fixture
def main(load_program, monkeypatch):
    program = load_program('tools/misc/make_norm_free.py')

    def main(*words):
        monkeypatch.setattr(sys, 'argv', ['make_norm_free.py', *map(str, words)])
        program.main()

    return main


def test_it_tells_that_the_model_is_norm_free(main, tmp_path, capsys):
    out = tmp_path / 'fcos.py'
    main('mmdet::fcos/fcos_r50-caffe_fpn_gn-head_1x_coco.py', out)
    printed = capsys.readouterr().out
    assert 'Note' not in printed
    assert printed.endswith(f'written: {out}, norm-free\n')


def test_it_names_what_still_normalizes(main, tmp_path, capsys):
    out = tmp_path / 'dcn.py'
    main('mmdet::dcn/faster-rcnn_r50-dconv-c3-c5_fpn_1x_coco.py', out)
    printed = capsys.readouterr().out
    assert 'backbone (ResNet): its deformable convolutions exclude' in printed
    assert '53 layers still normalize: 53 BatchNorm2d in backbone' in printed


def test_an_error_is_one_line(main, tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        main(tmp_path / 'no.py', tmp_path / 'out.py')
    assert stop.value.code == 2
    assert 'no.py cannot be read' in capsys.readouterr().err
