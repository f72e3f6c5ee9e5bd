"""Tests of tools/paper/make_table.py."""

import csv
import math
import re

import grid
import make_table
import page
import pytest
import run_table
from grid import Table
from records import read_records
from small_table import make_project, record, write


@pytest.mark.parametrize(
    'arguments, words',
    [
        (['table7'], ['table7', 'table1', 'table5', 'bccd']),
        (['table5', '--scale', 'mini'], ['mini', 'full']),
        (['table1', '--rows', 'pws', 'psw'], ['psw', 'pws-b2', 'normal']),
    ],
)
@pytest.mark.parametrize('program', [run_table, make_table])
def test_an_unknown_name_lists_the_known_ones(program, arguments, words, capsys):
    if '--rows' in arguments and program is make_table:
        arguments = ['table6']
        words = ['table6', 'table2']
    assert program.main([*arguments]) == 2
    message = capsys.readouterr().err
    assert all(word in message for word in words), message


@pytest.fixture
def root(tmp_path, monkeypatch):
    """The root of the small project."""
    root = make_project(tmp_path / 'project')
    monkeypatch.setattr(page, 'ROOT', root)
    monkeypatch.setattr(grid, 'GRID', root / 'tools/paper/tables.yml')
    return root


def test_table_of_records(root, tmp_path, capsys):
    write(
        tmp_path,
        record('a', 'b2', 0, 0.1),
        record('a', 'b2', 1, 0.2),
        record('a', 'b2', 2, 0.9, outcome='diverged at iteration 3'),
        record('a', 'b4', 0, None, outcome='diverged at iteration 5'),
        record('b', 'b2', 0, None, date='2026-11-24'),
        record('b', 'b4', 0, 0.4, outcome='failed with exit status 1: x'),
    )
    with open(tmp_path / 'small-mini.jsonl', 'a') as file:
        file.write('{"run": "b-b4')
    files = [tmp_path / 'table.md', tmp_path / 'table.csv']
    options = zip(('--markdown', '--csv'), map(str, files), strict=True)
    arguments = ['small', '--scale', 'mini', '--records', str(tmp_path)]
    assert make_table.main(arguments + [x for pair in options for x in pair]) == 0
    message = capsys.readouterr().err
    assert 'small-mini.jsonl: 1 of its lines are not complete records' in message

    with open(files[1], newline='') as file:
        rows = list(csv.reader(file))
    heading = ['Method', 'batch 2, AP, paper', 'batch 2, AP']
    assert rows[0] == [*heading, 'batch 4, AP, paper', 'batch 4, AP']
    assert rows[1] == ['A', '10.0', '15.0 ± 7.1 (1 of 3 NaN)', 'NaN', 'NaN']
    # A network that detects nothing has an AP of 0. A failed run has no figure.
    assert rows[2] == ['B', '20.5', '0.0', '30.0', '']
    markdown = files[0].read_text()
    assert all('| ' + ' | '.join(row) + ' |' in markdown for row in rows)
    for words in (
        'run_table.py small --scale mini --rows a-b2 --seeds 1 2`',
        'CPU, 1 of 2 cores a run',
        '2026-11-22 to 2026-11-24',
        'torch 2.13.0',
        'a-b4-s0 diverged at iteration 5',
        'b-b2-s0 detected nothing',
        'Revisions of the code, others than this one: aaaa (6 runs); a "+"',
    ):
        assert words in markdown, words


def printed(folder, capsys):
    assert make_table.main(['small', '--scale', 'mini', '--records', str(folder)]) == 0
    return capsys.readouterr().out


def test_other_revisions_are_named_as_such(root, tmp_path, capsys, monkeypatch):
    write(tmp_path, record('a', 'b2', 0, 0.1))
    monkeypatch.setattr(page, 'revision', lambda root: 'aaaa')
    out = printed(tmp_path, capsys)
    assert 'Revisions of the code: aaaa (1 run); a "+"' in out
    pair = [record('b', 'b2', 0, 0.1, revision=revision) for revision in ('aaaa', 'bb')]
    write(
        tmp_path,
        record('a', 'b4', 0, 0.1, revision='bb'),
        dict(pair[1], attempts=[*pair, pair[0]]),
    )
    out = printed(tmp_path, capsys)
    assert (
        'Revisions of the code: aaaa (1 run); others than this one: '
        'bb (1 run), aaaa then bb (1 run); a "+"'
    ) in out


def test_commands_make_these_runs_and_no_others(root, tmp_path, capsys):
    program = 'python tools/paper/run_table.py small --scale mini'
    cells = [(row, column) for row in 'ab' for column in ('b2', 'b4')]
    write(tmp_path, *(record(*cell, 0, 0.1) for cell in cells))
    out = printed(tmp_path, capsys)
    assert f'* `{program}`\n* Seeds' in out
    some = [('a', 'b2'), ('b', 'b2'), ('b', 'b4')]
    write(tmp_path, *(record(*cell, seed, 0.1) for cell in some for seed in (1, 2)))
    out = printed(tmp_path, capsys)
    expected = (
        f'* `{program}`\n* `{program} --rows a-b2 b --seeds 1 2`\n* Seeds: 0, 1, 2.'
    )
    assert expected in out
    lines = re.findall(r'`python \S+ small --scale mini(.*)`', out)
    runs = []
    for line in lines:
        words = (line if '--seeds' in line else f'{line} --seeds 0').split()
        at = words.index('--seeds')
        seeds = [int(seed) for seed in words[at + 1 :]]
        runs += Table('small', 'mini').runs(words[1:at] or None, seeds)
    written = set(read_records(tmp_path / 'small-mini.jsonl')[0])
    assert {run.name for run in runs} == written and len(runs) == len(written)


def test_data_from_another_place_is_named(root, tmp_path, capsys):
    write(tmp_path, record('a', 'b2', 0, 0.1))
    assert '--data' not in printed(tmp_path, capsys)
    write(tmp_path, dict(record('b', 'b2', 0, 0.5), data='data/images.zip'))
    out = printed(tmp_path, capsys)
    assert '* With `--data data/images.zip`: 1 of 2 runs.' in out


def test_a_figure_that_is_not_finite_is_none(root, tmp_path, capsys):
    write(tmp_path, record('a', 'b2', 0, math.nan), record('b', 'b2', 0, 0.5))
    write(tmp_path, record('b', 'b2', 1, math.inf))
    out = printed(tmp_path, capsys)
    assert '| A | 10.0 | NaN | NaN |  |' in out
    assert '| B | 20.5 | 50.0 (1 of 2 NaN) | 30.0 |  |' in out
    assert 'a-b2-s0 finished with a figure that is not finite' in out


def test_figures_of_the_authors_are_marked(root, tmp_path, capsys):
    grid = root / 'tools/paper/tables.yml'
    text = grid.read_text().replace('{label: [A],', '{label: [A], authors: true,')
    grid.write_text(text.replace('20.5', 'null'))
    sheet = tmp_path / 'table.csv'
    folder = tmp_path / 'records'
    folder.mkdir()
    arguments = ['small', '--scale', 'mini', '--records', str(folder)]
    assert make_table.main([*arguments, '--csv', str(sheet)]) == 0
    out = capsys.readouterr().out
    assert '| A | 10.0 ¹ |  | NaN ¹ |  |\n| B |  |  | 30.0 |  |\n\n¹ From' in out
    with open(sheet, newline='') as file:
        rows = list(csv.reader(file))
    assert rows[0][-1] == "figures of the authors' repository"
    assert rows[1:] == [
        ['A', '10.0', '', 'NaN', '', 'AP'],
        ['B', '', '', '30.0', '', ''],
    ]
    # `authors` names a figure instead of marking rows.
    text = text.replace('authors: true, ', '').replace(
        'figures:', 'authors: [AP]\n  figures:'
    )
    grid.write_text(text)
    out = printed(folder, capsys)
    assert '| A | 10.0 ¹ |  | NaN ¹ |  |\n| B | 20.5 ¹ |  | 30.0 ¹ |  |' in out


@pytest.mark.parametrize('option', ['--csv', '--markdown'])
def test_a_folder_is_no_file(root, tmp_path, capsys, option):
    arguments = ['small', '--scale', 'mini', '--records', str(tmp_path)]
    assert make_table.main([*arguments, option, str(tmp_path)]) == 2
    message = capsys.readouterr().err
    assert message.startswith('make_table.py: ') and str(tmp_path) in message
    assert message.count('\n') == 1


def test_a_table_goes_to_its_place_in_a_page(root, tmp_path, capsys):
    write(tmp_path, record('a', 'b2', 0, 0.1))
    file = tmp_path / 'page.md'
    arguments = ['small', '--scale', 'mini', '--records', str(tmp_path)]
    arguments += ['--markdown', str(file)]
    file.write_text('Before.\n')
    assert make_table.main(arguments) == 2
    assert '<!-- small-mini -->' in capsys.readouterr().err
    file.write_text('Before.\n<!-- small-mini -->\nold\n<!-- /small-mini -->\nAfter.\n')
    for _ in range(2):
        assert make_table.main(arguments) == 0
        text = file.read_text()
        assert text.startswith('Before.\n<!-- small-mini -->\n**Small**')
        assert text.endswith('\n<!-- /small-mini -->\nAfter.\n')
        assert text.count('| A |') == 1 and 'old' not in text


def test_no_records(root, tmp_path, capsys):
    arguments = ['small', '--scale', 'mini', '--records']
    assert make_table.main([*arguments, str(tmp_path)]) == 0
    assert 'No run has a record yet' in capsys.readouterr().out
    assert make_table.main([*arguments, str(tmp_path / 'none')]) == 2
    assert 'run_table.py makes it' in capsys.readouterr().err
