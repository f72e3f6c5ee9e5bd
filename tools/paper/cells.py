"""The cells of a table: the paper's figures and those measured here."""

import collections
import math
import statistics
from collections.abc import Iterable

from grid import Metric, Table, text


def cell(records: Iterable[dict], metric: Metric) -> str:
    """Return a measured figure.

    Examples: '', '61.2', '61.2 ± 0.4', 'NaN', '61.2 (1 of 3 NaN)'.

    Args:
        records: The records of one cell, with one or several seeds. The figure is
            their mean, ± the standard deviation of several.
        metric: The figure.
    """
    ended = [r for r in records if not r['outcome'].startswith('failed')]
    values = [metric.of(r['metrics']) for r in ended if r['outcome'] == 'finished']
    values = [value for value in values if math.isfinite(value)]
    if not ended:
        return ''
    if not values:
        return 'NaN'
    shown = f'{statistics.mean(values):.1f}'
    if len(values) > 1:
        shown += f' ± {statistics.stdev(values):.1f}'
    if len(values) < len(ended):
        shown += f' ({len(ended) - len(values)} of {len(ended)} NaN)'
    return shown


def make_rows(table: Table, records: list[dict], mark: str = '') -> list[list[str]]:
    """Return the cells of a table, the heading first.

    Args:
        table: The table.
        records: The records of its runs.
        mark: The text after figures that are not in the paper but in the repository of
            its authors.
    """
    by_cell = collections.defaultdict(list)
    for record in records:
        by_cell[record['row'], record['column']].append(record)

    # Each figure of the paper stands before the metrics that were measured of it.
    groups: list[tuple[str | None, list[Metric]]] = [
        (figure, [m for m in table.metrics if (m.beside or m.name) == figure])
        for figure in table.figures
    ]
    shown = [m for _, metrics in groups for m in metrics]
    groups += [(None, [m]) for m in table.metrics if m not in shown]

    heading = list(table.head)
    for column in table.columns.values():
        for figure, metrics in groups:
            names = [f'{figure}, paper'] if figure else []
            names += [m.name for m in metrics]
            heading += [
                ', '.join(filter(None, (column['label'], name))) for name in names
            ]
    rows = [heading]
    for row_name, row in table.rows.items():
        label = [text(part) for part in row['label']]
        line = label + [''] * (len(table.head) - len(label))
        for column in table.columns:
            for figure, metrics in groups:
                if figure:
                    published = text(table.paper(row_name, column, figure))
                    if published and table.is_of_authors(row_name, figure):
                        published += mark
                    line.append(published)
                line += [cell(by_cell[row_name, column], m) for m in metrics]
        rows.append(line)
    return rows


def make_sheet(table: Table, records: list[dict]) -> list[list[str]]:
    """Return the cells of ``make_rows`` for CSV.

    A last column names the figures from the authors' repository, if there are any.
    """
    rows = make_rows(table, records)
    of_authors = [
        [
            figure
            for figure in table.figures
            if table.is_of_authors(row, figure)
            and any(table.paper(row, column, figure) for column in table.columns)
        ]
        for row in table.rows
    ]
    if any(of_authors):
        rows[0].append("figures of the authors' repository")
        for row, figures in zip(rows[1:], of_authors, strict=True):
            row.append(', '.join(figures))
    return rows
