"""Write a table of the paper from the records of its runs, as Markdown and as CSV."""

import csv
import io
import sys
from pathlib import Path

from cells import make_rows, make_sheet
from environment import revision
from grid import Table
from notes import make_notes
from records import read_records

from pws_mmdet.utils.files import put_in_page, write_whole

ROOT = Path(__file__).resolve().parents[2]
MARK = ' ¹'


def write_table(
    table: Table,
    folder: Path,
    markdown: Path | None = None,
    csv_file: Path | None = None,
) -> str:
    """Write a table from the records of its runs.

    Args:
        table: The table.
        folder: The folder that run_table.py wrote to.
        markdown: A new page, or a page with a marked place for the table.
        csv_file: A file for the same cells.

    Returns:
        The table as Markdown.

    Raises:
        ValueError: If the page has no place for the table.
        OSError: If the folder does not exist or a file cannot be written.
    """
    if not folder.is_dir():
        raise FileNotFoundError(
            f'there is no folder {folder}; run_table.py makes it, and --records names '
            'another'
        )
    records = select_records(table, folder)
    page = to_markdown(table, records, make_notes(table, records, revision(ROOT)))
    if csv_file:
        file = io.StringIO()
        csv.writer(file, lineterminator='\n').writerows(make_sheet(table, records))
        write_whole(csv_file, lambda part: part.write_text(file.getvalue(), 'utf-8'))
    if markdown:
        put_in_page(markdown, f'{table.name}-{table.scale}', page)
    return page


def select_records(table: Table, folder: Path) -> list[dict]:
    """Read the complete records of a table's runs, oldest first."""
    path = folder / f'{table.name}-{table.scale}.jsonl'
    found, broken = read_records(path)
    if broken:
        print(
            f'{path}: {len(broken)} of its lines are not complete records and are left '
            'out; run_table.py trains their runs again',
            file=sys.stderr,
        )
    records = []
    for record in found.values():
        if record['row'] in table.rows and record['column'] in table.columns:
            records.append(record)
        else:
            print(
                f'{path}: {record["run"]} belongs to no cell of {table.name} and is '
                'left out',
                file=sys.stderr,
            )
    return sorted(records, key=lambda record: (record['date'], record['run']))


def to_markdown(table: Table, records: list[dict], notes: list[str]) -> str:
    """Return a table with its notes."""

    def line(cells):
        return '| ' + ' | '.join(cells) + ' |'

    rows = make_rows(table, records, MARK)
    lines = [f'**{table.title}**', '', f'Data: {table.data}.', '']
    lines += [line(rows[0]), '|' + '---|' * len(rows[0])]
    lines += [line(cells) for cells in rows[1:]]
    if any(text.endswith(MARK) for cells in rows for text in cells):
        lines += ['', f"{MARK.strip()} From the authors' repository, not in the paper."]
    return '\n'.join([*lines, '', *(f'* {note}' for note in notes)]) + '\n'
