"""The console scripts run the programs of tools/, under their own names."""

import re
import sys
from pathlib import Path

import pytest
from conftest import ROOT

from pws_mmdet import cli
from pws_mmdet.utils.repository import find_file, shown_path

# Of setup.py: the name of each script and its function
SCRIPTS = dict(re.findall(r"'(pws-[a-z-]+)': '(\w+)'", (ROOT / 'setup.py').read_text()))


def run_script(name, monkeypatch, *args):
    """Return the exit code of a script, called as pip's wrapper calls it."""
    monkeypatch.setattr(sys, 'argv', [f'/usr/local/bin/{name}', *map(str, args)])
    with pytest.raises(SystemExit) as error:
        getattr(cli, SCRIPTS[name])()
    return error.value.code


def test_each_script_has_a_function():
    assert len(SCRIPTS) == 7
    for name, function in SCRIPTS.items():
        # The first word of its docstring is its name.
        assert getattr(cli, function).__doc__.startswith(f'`{name}`: ')


@pytest.mark.parametrize('name', SCRIPTS)
def test_help_shows_the_name_of_the_script(name, monkeypatch, capsys):
    if name == 'pws-report':
        pytest.importorskip('plotly', reason='the extra `report` is not installed')
    assert run_script(name, monkeypatch, '--help') == 0
    assert capsys.readouterr().out.startswith(f'usage: {name} [-h] ')


def test_errors_and_exit_codes_are_those_of_the_program(monkeypatch, capsys, tmp_path):
    out = tmp_path / 'out.py'
    assert run_script('pws-norm-free', monkeypatch, tmp_path / 'none.py', out) == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith('pws-norm-free: error: ') and 'none.py' in last
    assert not out.exists()


def test_a_missing_program_is_one_clear_error(monkeypatch, tmp_path):
    # as in a wheel that was built without tools/
    monkeypatch.setattr(cli, 'find_file', lambda path: find_file(path, tmp_path / 'p'))
    program = 'tools/model_converters/fuse_pws.py'
    error = run_script('pws-fuse', monkeypatch, '--help')
    assert error == (
        f'The pws_mmdet in {tmp_path}/p came without {program}: there is no '
        f'{tmp_path}/p/.mim/{program} nor {tmp_path}/{program}. Reinstall it'
    )


def test_files_of_a_wheel_come_before_others(tmp_path):
    """site-packages may hold a folder `tools` of another package."""
    package = tmp_path / 'pws_mmdet'
    for folder in (tmp_path / 'tools', package / '.mim/tools'):
        folder.mkdir(parents=True)
        (folder / 'train.py').touch()
    assert find_file('tools/train.py', package) == package / '.mim/tools/train.py'


def test_paths_are_shown_as_a_command_line_takes_them(monkeypatch, tmp_path):
    monkeypatch.chdir(ROOT)
    assert shown_path('tools/train.py') == 'tools/train.py'
    monkeypatch.chdir(ROOT / 'tools')
    assert shown_path('tools/train.py') == 'train.py'
    monkeypatch.chdir(tmp_path)
    assert Path(shown_path('tools/train.py')) == ROOT / 'tools/train.py'
    assert shown_path('tools/none.py') == 'tools/none.py'
