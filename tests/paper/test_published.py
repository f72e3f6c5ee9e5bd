"""The pages show what is in the records."""

import re
import statistics

import make_table
import pytest
from conftest import ROOT
from grid import Table
from records import read_records

RESULTS = ROOT / 'docs/results'
PUBLISHED = sorted(path.stem for path in RESULTS.glob('records/*'))


def lines_of(page):
    """The lines of a page that do not depend on the commit."""
    lines = page.read_text().splitlines()
    return [line for line in lines if not line.startswith('* Revisions of the code')]


@pytest.mark.parametrize('folder', PUBLISHED)
def test_published_tables_are_those_of_the_records(folder, tmp_path):
    name, scale = folder.split('-')
    mark = f'<!-- {folder} -->'
    (published,) = (p for p in RESULTS.glob('*.md') if mark in p.read_text())
    page = tmp_path / 'page.md'
    page.write_text(published.read_text())
    sheet = tmp_path / 'table.csv'
    arguments = [name, '--scale', scale, '--records', str(RESULTS / 'records')]
    arguments += ['--markdown', str(page), '--csv', str(sheet)]
    assert make_table.main(arguments) == 0
    assert lines_of(page) == lines_of(published)
    assert sheet.read_text() == (RESULTS / f'{folder}.csv').read_text()


def measured(table, row, key, column=''):
    """The mean of a figure over the seeds, in %, as the README prints it."""
    values = []
    records, _ = read_records(RESULTS / f'records/{table}-mini.jsonl')
    for record in records.values():
        if (record['row'], record['column']) == (row, column):
            values.append(100 * record['metrics'][key])
    return f'{statistics.mean(values):.1f}'


def readme_tables():
    """The tables of the README as lists of rows, each a list of cells."""
    found = [[]]
    for line in (ROOT / 'README.md').read_text().splitlines():
        if line.startswith('|'):
            found[-1].append([cell.strip() for cell in line.strip('|').split('|')])
        elif found[-1]:
            found.append([])
    return found


def test_readme_reproduces_what_was_measured():
    """Each config of Table 3 has the figures of its small run; SSD those of Table 2."""
    # The first row of a config is the config as it is; others have options.
    of_config = {
        run.config.split('/')[-1][:-3]: run.row
        for run in reversed(Table('table3', 'full').runs())
    }
    (table,) = [t for t in readme_tables() if t and t[0][0] == 'config']
    at = [
        i
        for i, head in enumerate(table[0])
        if head.split(',')[1:2] == [' reproduced here']
    ]
    shown, expected = {}, {}
    for cells in table[2:]:
        config = re.match(r'\[(\w+)\]', cells[0])[1]
        row = of_config[config]
        shown[config] = [cells[i] for i in at]
        if row in ('ssd-bn', 'ssd-pws'):
            method = row.removeprefix('ssd-')
            expected[config] = [measured('table2', method, 'coco/bbox_mAP'), '']
        elif row.startswith('ssd-'):
            expected[config] = ['', '']
        else:
            keys = ('coco/bbox_mAP', 'coco/segm_mAP')
            expected[config] = [measured('table3', row, key) for key in keys]
    assert len(shown) == 9
    assert shown == expected


def test_readme_shows_the_small_table_of_batches():
    (table,) = [t for t in readme_tables() if t and 'PWS' in t[0] and 'IN' in t[0]]
    assert [cells[0] for cells in table[2:]] == ['batch 2', 'batch 4', 'batch 8']
    for cells in table[2:]:
        for method, cell in zip(table[0][1:], cells[1:], strict=True):
            column = cells[0].replace('batch ', 'b')
            key = 'coco/bbox_mAP_50'
            assert cell == measured('table1', method.lower(), key, column), cells[0]


def test_records_have_at_most_400_lines():
    files = [*ROOT.glob('docs/**/*.json'), *ROOT.glob('docs/**/*.jsonl')]
    lines = sum(len(path.read_text().splitlines()) for path in files)
    assert 0 < lines <= 400
