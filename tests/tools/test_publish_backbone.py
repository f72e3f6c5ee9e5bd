"""The command line of tools/model_converters/publish_backbone.py."""

import sys

import pytest
import torch


@pytest.fixture
def main(load_program, monkeypatch):
    program = load_program('tools/model_converters/publish_backbone.py')

    def main(*words):
        monkeypatch.setattr(sys, 'argv', ['publish_backbone.py', *map(str, words)])
        program.main()

    return main


def test_it_prints_the_file_and_the_link(main, tmp_path, capsys):
    torch.save({'backbone.w': torch.ones(1)}, tmp_path / 'in.pth')
    out = tmp_path / 'out.pth'
    main(tmp_path / 'in.pth', out)
    expected = f'written: {out.resolve()}\nlink:    {out}\n'
    assert capsys.readouterr().out == expected


def test_an_error_is_one_line(main, tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        main(tmp_path / 'no.pth', tmp_path / 'out.pth')
    assert stop.value.code == 2
    assert 'There is no checkpoint' in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
