"""docs/why.md repeats measurements of other pages, and nothing else."""

import re

import pytest
from conftest import ROOT

DOCS = ROOT / 'docs'
TEXT = (DOCS / 'why.md').read_text()
# A table of the page, with the page and the title that it is copied from
MARKED = re.findall(r'<!-- from ([^:,]+)(, second)?: (.*) -->\n((?:\|.*\n)+)', TEXT)
# From here on, all numbers are measured. Those in links and names are no measurements.
PROSE = TEXT[TEXT.index('## Measured') :]
MEASURED = [
    'benchmarks-gpu.md',
    *(f'results/{p.name}' for p in DOCS.glob('results/*.md')),
]


def cells_of(lines):
    return [[c.strip() for c in line.strip('|').split('|')] for line in lines]


def table_of(page, title, number=0):
    """The rows of a table with this title, the heading first."""
    text = (DOCS / page).read_text()
    after = text.split(f'**{title}**')[1:][number]
    return cells_of(re.search(r'(?:^\|.*\n)+', after, re.MULTILINE)[0].splitlines())


def test_every_measured_table_names_its_source():
    assert len(MARKED) == PROSE.count('\n|---') == 8


@pytest.mark.parametrize('page, second, title, lines', MARKED)
def test_tables_are_those_of_their_sources(page, second, title, lines):
    source = table_of(page, title, bool(second))
    heading, _, *rows = cells_of(lines.splitlines())
    columns = [source[0].index(name) for name in heading]
    chosen = [[row[i] for i in columns] for row in source[2:]]
    assert rows == [row for row in chosen if row in rows]
    assert len(rows) >= 4


def test_numbers_of_the_text_are_in_the_measurements():
    known = ' '.join((DOCS / page).read_text() for page in MEASURED)
    known = set(re.findall(r'\d+\.\d+', known))
    numbers = set(re.findall(r'\d+\.\d+', PROSE))
    assert len(numbers) > 50 and numbers <= known


def test_every_published_number_has_a_source():
    published = TEXT[TEXT.index('## Published') : TEXT.index('## Measured')]
    rows = cells_of(line for line in published.splitlines() if line.startswith('|'))
    assert len(rows) > 8
    for row in rows[2:]:
        assert row[-1], row
    for path in re.findall(r'\]\((?!http)([^)#]+)', TEXT):
        assert (DOCS / path).is_file(), path
