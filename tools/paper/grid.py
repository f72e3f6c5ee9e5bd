"""The paper's tables as a grid of trainings, which ``tables.yml`` lists.

This module needs neither torch nor MMDetection: ``run_table.py --dry-run`` starts fast.
"""

import fnmatch
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

SCALES = ('full', 'cifar', 'mini')
GRID = Path(__file__).with_name('tables.yml')


class TableError(ValueError):
    """There is no such table, scale or row. The message lists those that exist."""


@dataclass(frozen=True)
class Metric:
    """A measured figure of a table.

    Args:
        name: Its name in the table's heading.
        key: The metric of the validation.
        factor, offset: The figure is ``factor * value + offset``.
        beside: The paper's figure that it stands beside; by default, the figure of
            the same name.
    """

    name: str
    key: str
    factor: float = 1
    offset: float = 0
    beside: str | None = None

    def of(self, values: dict[str, float]) -> float:
        """Return the figure in the table's unit.

        CocoMetric returns no values if a detector finds nothing. The value is 0 then.
        """
        return self.factor * values.get(self.key, 0.0) + self.offset


@dataclass(frozen=True)
class Run:
    """One training of a table."""

    table: str
    scale: str
    row: str
    column: str
    seed: int
    label: str
    config: str
    options: dict[str, Any] = field(default_factory=dict, hash=False)
    flags: tuple[str, ...] = ()

    @property
    def cell(self) -> str:
        """The name of the row and the column, without the seed."""
        return f'{self.row}-{self.column}' if self.column else self.row

    @property
    def name(self) -> str:
        return f'{self.cell}-s{self.seed}'

    @property
    def folder(self) -> str:
        return f'{self.table}-{self.scale}'

    def record_file(self, out: Path) -> Path:
        """Return the file of the run's record in the folder of all records."""
        return out / f'{self.folder}.jsonl'

    def arguments(self, changes: Mapping[str, Any] | None = None) -> list[str]:
        """Return the arguments of ``tools/train.py``, the config first.

        Args:
            changes: Options to add. They replace the run's own options.
        """
        options = {**self.options, 'randomness.seed': self.seed, **(changes or {})}
        pairs = [f'{key}={value}' for key, value in options.items()]
        return [self.config, *self.flags, '--cfg-options', *pairs]


class Table:
    """One table of the grid at one scale.

    Args:
        name: Name of the table, such as 'table1'.
        scale: 'full', the paper's data; 'cifar', short trainings on CIFAR-10 for a CPU;
            or 'mini', for a laptop's CPU.
        path: The grid; by default ``GRID``.

    Raises:
        TableError: If there is no such table, or if it lacks the scale.
    """

    def __init__(self, name: str, scale: str, path: str | Path | None = None) -> None:
        with open(path or GRID, encoding='utf-8') as file:
            grid = yaml.safe_load(file)
        tables = [key for key in grid if not key.startswith('_')]
        if name not in tables:
            raise TableError(
                f'There is no table {name!r}. The tables: {", ".join(tables)}.'
            )
        self.name = name
        self.scale = scale
        self._spec = spec = grid[name]
        if scale not in spec['scales']:
            scales = ', '.join(spec['scales'])
            raise TableError(f'{name} has no scale {scale!r}. Its scales: {scales}.')
        self._scale_spec = spec['scales'][scale]
        self.title: str = spec['title']
        self.data: str = self._scale_spec['data']
        self.head: list[str] = spec['head']
        self.figures: list[str] = spec.get('figures', [])
        self.authors: list[str] = spec.get('authors', [])
        self.metrics = [Metric(**metric) for metric in self._scale_spec['metrics']]
        self.decimals: int = spec.get('decimals', 1)
        self.columns = self._parts(spec.get('columns', {'': dict(label='')}))
        self.rows = {
            key: row
            for key, row in self._parts(spec['rows']).items()
            if row.get('config', '') is not None
        }

    def _parts(self, specs: dict[str, dict]) -> dict[str, dict[str, Any]]:
        """Return rows or columns with what is given for this scale."""
        return {
            key: {name: self._part(value) for name, value in spec.items()}
            for key, spec in specs.items()
        }

    def _part(self, value: Any) -> Any:
        """Return what is given for this scale, None if only others are."""
        if isinstance(value, dict) and value and set(value) <= set(SCALES):
            return value.get(self.scale)
        return value

    def runs(
        self, rows: Sequence[str] | None = None, seeds: Sequence[int] = (0,)
    ) -> list[Run]:
        """Return the trainings of the table.

        Args:
            rows: Names of rows, names of cells such as 'pws-b2', or patterns such as
                '*-b2'. The runs are in the order of these names. None means all.
            seeds: Every cell is trained once with each seed.

        Raises:
            TableError: If one of ``rows`` matches nothing.
        """
        cells = [
            self._run(row, column, seeds[0])
            for row in self.rows
            for column in self.columns
        ]
        if rows:
            chosen = []
            for pattern in rows:
                matches = [
                    run
                    for run in cells
                    if fnmatch.fnmatchcase(run.row, pattern)
                    or fnmatch.fnmatchcase(run.cell, pattern)
                ]
                if not matches:
                    raise TableError(
                        f'{self.name} has no row {pattern!r} at the scale '
                        f'{self.scale!r}. Its rows: {", ".join(self.rows)}; its '
                        f'cells: {", ".join(run.cell for run in cells)}.'
                    )
                chosen += [run for run in matches if run not in chosen]
            cells = chosen
        return [self._run(run.row, run.column, seed) for seed in seeds for run in cells]

    def _run(self, row_name: str, column_name: str, seed: int) -> Run:
        row, column = self.rows[row_name], self.columns[column_name]
        options = {
            **self._scale_spec.get('options', {}),
            **(column.get('options') or {}),
            **(row.get('options') or {}),
        }
        for part in self._spec.get('conv_cfg_of', ()):
            for key, value in row.get('conv_cfg', {}).items():
                options[f'{part}.conv_cfg.{key}'] = value
        label = [text(part) for part in (row['label'][0], column['label'])]
        return Run(
            table=self.name,
            scale=self.scale,
            row=row_name,
            column=column_name,
            seed=seed,
            label=', '.join(filter(None, label)),
            config=self._scale_spec['config'].format(
                row=row.get('config', ''),
                column=column.get('config', ''),
            ),
            options=options,
            flags=tuple(self._scale_spec.get('flags', ())),
        )

    def paper(self, row: str, column: str, figure: str) -> str | None:
        """Return the paper's figure: a number, 'NaN', or None if it has none."""
        of_columns = self.rows[row].get('paper')
        if of_columns is None:
            return None
        figures = of_columns[list(self.columns).index(column)]
        if not isinstance(figures, list):
            figures = [figures]
        index = self.figures.index(figure)
        figure = figures[index] if index < len(figures) else None
        return f'{figure:.{self.decimals}f}' if isinstance(figure, float) else figure

    def is_of_authors(self, row: str, figure: str) -> bool:
        """Whether a figure is from the repository of the paper's authors."""
        return figure in self.authors or bool(self.rows[row].get('authors'))


def text(value: Any) -> str:
    """Return the text of a value of the grid."""
    if value is None:
        return ''
    if isinstance(value, bool):
        return 'yes' if value else 'no'
    return str(value)
