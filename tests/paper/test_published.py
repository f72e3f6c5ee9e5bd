"""The pages show what is in the records."""

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
    return f'{statistics.mean(values):.1f}' if values else ''


def readme_table(first_row):
    """The README's table with a row of this name: its cells by row and column."""
    tables = [[]]
    for line in (ROOT / 'README.md').read_text().splitlines():
        if line.startswith('|'):
            tables[-1].append([cell.strip() for cell in line.strip('|').split('|')])
        elif tables[-1]:
            tables.append([])
    (table,) = [t for t in tables if t and first_row in [cells[0] for cells in t]]
    head, _, *rows = table
    return {
        (cells[0], column): cell
        for cells in rows
        for column, cell in zip(head[1:], cells[1:], strict=True)
    }


BOX, MASK = 'coco/bbox_mAP', 'coco/segm_mAP'
MEASURED = {  # README's row: the table, its column, and the metrics
    'SSD on digits, batch 2, AP50': ('table1', 'b2', ['coco/bbox_mAP_50']),
    'SSD on digits, batch 8, AP50': ('table1', 'b8', ['coco/bbox_mAP_50']),
    'Mask R-CNN on digits, batch 8, box AP / mask AP': ('table3', '', [BOX, MASK]),
    'SSD on BCCD, batch 8, mAP': ('bccd', '', ['pascal_voc/mAP']),
}
ROWS = {
    'Normal': 'normal',
    'Normal, clipped': 'normal-clip',
    'BN': 'bn',
    'GN': 'gn',
    'PWS': 'pws',
}


def test_readme_shows_what_was_measured():
    shown = readme_table('SSD on BCCD, batch 8, mAP')
    expected = {
        (name, method): ' / '.join(filter(None, figures))
        for name, (table, column, keys) in MEASURED.items()
        for method, row in ROWS.items()
        for figures in [[measured(table, row, key, column) for key in keys]]
    }
    assert shown == expected


def test_readme_shows_what_was_published():
    names = {
        'Mask R-CNN R-50-FPN 1x': '',
        'the same, head of 4 convolutions': '4conv-',
        'SSD320 VGG-16, 80 epochs': 'ssd-',
        'SSD320 VGG-16, 150 epochs': 'ssd-{}-2x',
    }
    shown = readme_table('Mask R-CNN R-50-FPN 1x')
    table = Table('table3', 'full')
    for name, pattern in names.items():
        for method in ('pws', 'bn', 'gn'):
            row = pattern.format(method) if '{' in pattern else pattern + method
            figures = [
                figure
                for kind in ('box AP', 'mask AP')
                if row in table.rows and (figure := table.paper(row, '', kind))
            ]
            assert shown[name, method.upper()] == ' / '.join(figures), (name, method)


def test_records_have_at_most_400_lines():
    files = [*ROOT.glob('docs/**/*.json'), *ROOT.glob('docs/**/*.jsonl')]
    lines = sum(len(path.read_text().splitlines()) for path in files)
    assert 0 < lines <= 400
