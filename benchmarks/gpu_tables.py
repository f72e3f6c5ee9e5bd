"""The tables of what gpu.py measured.

This module needs no torch: a report can be made even if nothing else works.
"""

from collections.abc import Iterator
from typing import Any

from gpu_cases import GOALS, SETTINGS


def cell(row: dict[str, Any] | None, what: str, plain: dict[str, Any] | None) -> str:
    """Return the speed or memory of a kind, and its ratio to plain convolutions."""
    if row is None:
        return ''
    if row['error'] is not None:
        return row['error'].partition(':')[0]
    if what == 'memory':
        text = f'{row["peak_mib"] / 1024:.2f} GiB'
        if plain and plain['error'] is None:
            text += f' ({row["peak_mib"] / plain["peak_mib"]:.2f})'
        return text
    ratio = row['speed'].get('plain')
    text = f'{row["images_per_second"]:.0f}'
    if row['images_per_second'] < 100:
        text = f'{row["images_per_second"]:.1f}'
    return text + (f' ({ratio:.3f})' if ratio else '')


def table(rows: list[dict[str, Any]], what: str) -> str:
    """Return a table with a row for each kind and a column for each setting."""
    columns = list(dict.fromkeys((r['batch_size'], r['setting']) for r in rows))
    columns.sort(key=lambda c: (c[0], list(SETTINGS).index(c[1])))
    cells = {(r['kind'], r['batch_size'], r['setting']): r for r in rows}
    lines = ['| | ' + ' | '.join(f'{b} x, {s}' for b, s in columns) + ' |']
    lines.append('|---' * (len(columns) + 1) + '|')
    for kind in dict.fromkeys(r['kind'] for r in rows):
        texts = [
            cell(cells.get((kind, *c)), what, cells.get(('plain', *c))) for c in columns
        ]
        lines.append(f'| {kind} | {" | ".join(texts)} |')
    return '\n'.join(lines) + '\n'


def goals(rows: list[dict[str, Any]]) -> list[str]:
    """Return a line for each setting that compares PWS with the others."""
    lines = []
    for key in dict.fromkeys((r['part'], r['batch_size'], r['setting']) for r in rows):
        own = {
            (r['kind'], r['inference']): r
            for r in rows
            if (r['part'], r['batch_size'], r['setting']) == key and r['error'] is None
        }
        texts = []
        if pws := own.get(('PWS', False)):
            texts += reached(pws)
            for other in ('BN', 'GN'):
                if row := own.get((other, False)):
                    texts.append(
                        f'{pws["peak_mib"] / row["peak_mib"]:.2f} of the memory of '
                        f'{other}'
                    )
        if fused := own.get(('PWS, fused', True)):
            if ratio := fused['speed'].get('plain'):
                texts.append(f'fused inference {ratio:.3f} of plain')
        if pws := own.get(('PWS, group norm', False)):
            texts.append(f'without the kernel {", ".join(reached(pws))}')
        part, batch_size, setting = key
        lines.append(f'* {part}, {batch_size} images, {setting}: {"; ".join(texts)}.')
    return lines


def reached(row: dict[str, Any]) -> list[str]:
    """Return the speed over that of each kind of GOALS, beside the goal."""
    return [
        f'{ratio:.2f} of {other} (goal {least})'
        for other, least in GOALS
        if (ratio := row['speed'].get(other))
    ]


def filters_table(rows: list[dict[str, Any]]) -> str:
    lines = [
        f'**All {rows[0]["layers"]} filters and their gradients alone (ms)**\n',
        '| | step | launches on the CPU | work on the GPU | kernels |',
        '|---' * 5 + '|',
    ]
    for row in rows:
        name = 'kernel' if row['kernel'] else 'group norm'
        name += ', AMP' if row['amp'] else ', fp32'
        busy, count = row.get('gpu_ms'), row.get('kernels', '')
        busy = '' if busy is None else f'{busy:.2f}'
        lines.append(
            f'| {name} | {row["ms"]:.2f} | {row["launch_ms"]:.2f} | {busy} | {count} |'
        )
    return '\n'.join(lines) + '\n'


def profile_table(part: dict[str, Any]) -> str:
    floor, profile = part['floor'], part['profile']
    lines = [
        f'**{part["part"]}, a training step with PWS, operator by operator (ms)**\n',
        '| | plain | PWS | difference |',
        '|---|---|---|---|',
    ]
    for row in [*profile['operators'], dict(operator='all', ms=profile['ms'])]:
        plain, pws = row['ms']
        name = row['operator'].replace('|', r'\|')[:80]
        lines.append(f'| {name} | {plain:.2f} | {pws:.2f} | {pws - plain:+.2f} |')
    lines.append(
        f'\nStandardizing the {floor["weights_mib"]:.0f} MiB of all {floor["layers"]} '
        f'layers alone takes {floor["ms"]:.2f} ms, and copying them '
        f'{floor["copy_ms"]:.2f} ms.'
    )
    return '\n'.join(lines) + '\n'


def cifar_table(trainings: list[dict[str, Any]]) -> str:
    lines = [
        f'**CIFAR-10, ResNet-20, {trainings[0]["seconds"]:.0f} seconds, side by side '
        'on one GPU**\n',
        '| | accuracy | epochs | steps/s | loss | images |',
        '|---' * 6 + '|',
    ]
    for r in trainings:
        loss = 'not finite' if r['loss'] is None else f'{r["loss"]:.3f}'
        lines.append(
            f'| {r["kind"]} | {r["accuracy"]:.2f} | {r["epochs"]:.0f} '
            f'| {r["steps_per_second"]:.0f} | {loss} | {r["images"]} |'
        )
    return '\n'.join(lines) + '\n'


def part_tables(part: dict[str, Any]) -> Iterator[str]:
    """Yield the tables of a network."""
    for inference in (False, True):
        chosen = [r for r in part['results'] if r['inference'] == inference]
        if not chosen:
            continue
        name = f'{part["part"]}, {"inference" if inference else "training"}'
        height, width = chosen[0]['image_size']
        yield (
            f'**{name}, {height} x {width}: images per second (over plain)**\n\n'
            + table(chosen, 'speed')
        )
        if not inference:
            yield (
                f'**{name}: peak memory of a step (over plain)**\n\n'
                + table(chosen, 'memory')
            )
    if 'profile' in part:
        yield profile_table(part)
    if 'filters' in part:
        yield filters_table(part['filters'])
    if part['not_measured']:
        texts = [
            f'{b} images, {s}, {"inference" if i else "training"}'
            for b, s, i in part['not_measured']
        ]
        yield f'Not measured, for want of time: {"; ".join(texts)}.\n'


def to_markdown(report: dict[str, Any]) -> str:
    """Return all tables of a report, and its notes."""
    blocks = []
    rows = [row for part in report['speed'] for row in part['results']]
    if rows:
        blocks.append('**PWS beside the others**\n\n' + '\n'.join(goals(rows)) + '\n')
    for part in report['speed']:
        blocks += part_tables(part)
    if report['cifar']:
        blocks.append(cifar_table(report['cifar']))
    if machine := report['machine']:
        versions = ', '.join(f'{k} {v}' for k, v in machine['versions'].items())
        blocks.append(
            f'* {machine["gpu"] or machine["cpu"]}; {machine["date"][:10]}.\n'
            f'* Versions: {versions}.\n'
        )
    for key, value in report['notes'].items():
        blocks.append(f'* {key}: {value}\n')
    return '\n'.join(blocks)
