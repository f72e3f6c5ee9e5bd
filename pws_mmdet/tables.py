"""The grid of the paper's tables (``configs/tables.yml``) and its runs' records."""

import fnmatch
import json
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from .utils.files import write_whole

SCALES = ('full', 'mini')

# What tools/analysis_tools/make_table.py reads of a record, of each attempt in it, and
# of the hardware
ATTEMPT = dict(date=str, revision=str, versions=dict, hardware=dict)
RECORD = dict(
    run=str, row=str, column=str, seed=int, outcome=str, metrics=dict, **ATTEMPT
)
HARDWARE = dict(cpu=str, cores=int, processes=int, threads=int)


class TableError(ValueError):
    """A table, scale or row that does not exist; the message lists those that do."""


@dataclass(frozen=True)
class Metric:
    """A measured figure: ``factor * value + offset`` of a validation's ``key``."""

    name: str
    key: str
    factor: float = 1
    offset: float = 0
    beside: str | None = None  # the figure of the paper; None is that of its name

    def of(self, values: dict[str, float]) -> float:
        """The figure in the table's unit.

        A detector without a single detection gets no values from CocoMetric: 0.
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
        """Row and column: what its repetitions with other seeds share."""
        return f'{self.row}-{self.column}' if self.column else self.row

    @property
    def name(self) -> str:
        return f'{self.cell}-s{self.seed}'

    @property
    def folder(self) -> str:
        return f'{self.table}-{self.scale}'

    def arguments(self, changes: Mapping[str, Any] | None = None) -> list[str]:
        """The arguments of ``tools/train.py``, the config first.

        Args:
            changes: Options in the place of the run's own, or beside them.
        """
        options = {**self.options, 'randomness.seed': self.seed, **(changes or {})}
        pairs = [f'{key}={value}' for key, value in options.items()]
        return [self.config, *self.flags, '--cfg-options', *pairs]


class Table:
    """One table of the grid at one scale.

    Args:
        name: Of the table.
        scale: 'full', the paper's data, or 'mini', for a laptop's CPU.
        path: The grid.

    Raises:
        TableError: If there is no such table, or not at that scale.
    """

    def __init__(self, name: str, scale: str, path: str | Path) -> None:
        with open(path, encoding='utf-8') as file:
            grid = yaml.safe_load(file)
        tables = [key for key in grid if not key.startswith('_')]
        if name not in tables:
            raise TableError(f'There is no table {name!r}, but {", ".join(tables)}.')
        self.name = name
        self.scale = scale
        self._spec = spec = grid[name]
        if scale not in spec['scales']:
            scales = ', '.join(spec['scales'])
            raise TableError(f'{name} has no scale {scale!r}, but {scales}.')
        self._scale_spec = spec['scales'][scale]
        self.title: str = spec['title']
        self.data: str = self._scale_spec['data']
        self.head: list[str] = spec['head']
        self.figures: list[str] = spec.get('figures', [])
        self.authors: list[str] = spec.get('authors', [])
        self.metrics = [Metric(**metric) for metric in self._scale_spec['metrics']]
        self.decimals: int = spec.get('decimals', 1)
        self.columns: dict[str, dict] = spec.get('columns', {'': dict(label='')})
        self.rows: dict[str, dict] = {
            key: row
            for key, row in spec['rows'].items()
            if self._part(row.get('config', '')) is not None
        }

    def _part(self, config: str | dict[str, str]) -> str | None:
        return config.get(self.scale) if isinstance(config, dict) else config

    def runs(
        self, rows: Sequence[str] | None = None, seeds: Sequence[int] = (0,)
    ) -> list[Run]:
        """The trainings of the table.

        Args:
            rows: Names of rows, or of cells such as 'pws-b2', or patterns of
                them such as '*-b2', whose order the runs follow. None is all.
            seeds: One run of every cell for each.

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
            **column.get('options', {}),
            **row.get('options', {}),
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
                row=self._part(row.get('config', '')),
                column=self._part(column.get('config', '')),
            ),
            options=options,
            flags=tuple(self._scale_spec.get('flags', ())),
        )

    def paper(self, row: str, column: str, figure: str) -> str | None:
        """What the paper measured: a number, 'NaN', or None where it has none."""
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
        """Whether a figure beside the paper's is from its authors' repository."""
        return figure in self.authors or bool(self.rows[row].get('authors'))


def text(value: Any) -> str:
    """A cell of the grid as it is printed."""
    if value is None:
        return ''
    if isinstance(value, bool):
        return 'yes' if value else 'no'
    return str(value)


def read_record(path: str | Path) -> dict | None:
    """The record of a run, or None if it is missing or only half written.

    Half written is also one that lacks what ``RECORD`` names.
    """
    try:
        with open(path, encoding='utf-8') as file:
            record = json.load(file)
    except (FileNotFoundError, json.JSONDecodeError, UnicodeDecodeError):
        return None
    return record if _is_whole(record) else None


def attempts(record: dict) -> list[dict]:
    """What trained a run, in turn: revision, date, versions and hardware of each."""
    return record.get('attempts', [record])


def _is_whole(record: Any) -> bool:
    def has(value, kinds):
        return isinstance(value, dict) and all(
            isinstance(value.get(name), kind) for name, kind in kinds.items()
        )

    return (
        has(record, RECORD)
        and all(isinstance(v, (int, float)) for v in record['metrics'].values())
        and isinstance(attempts(record), list)
        and len(attempts(record)) > 0
        and all(
            has(attempt, ATTEMPT) and has(attempt['hardware'], HARDWARE)
            for attempt in attempts(record)
        )
    )


def write_record(path: str | Path, record: dict) -> None:
    """Write a record as a whole or not at all."""
    text = json.dumps(record, indent=1) + '\n'
    write_whole(path, lambda part: part.write_text(text, encoding='utf-8'))


def revision(root: str | Path) -> str:
    """The commit of a checkout, with '+' if its code differs from it."""

    def git(*arguments):
        return subprocess.run(
            ['git', '-C', root, *arguments], capture_output=True, text=True, check=True
        ).stdout.strip()

    try:
        changed = git('status', '--porcelain', 'pws_mmdet', 'configs', 'tools')
        return git('rev-parse', '--short=10', 'HEAD') + ('+' if changed else '')
    except (OSError, subprocess.CalledProcessError):
        return 'unknown'
