"""A small table for tests: a project of two configs, and records of its runs."""

import textwrap

from records import write_record

TRAIN = """
    import json, os, signal, sys, time
    from pathlib import Path

    work_dir = Path(sys.argv[sys.argv.index('--work-dir') + 1])
    assert '--resume' in sys.argv
    mode = os.environ.get('MODE_' + work_dir.name.split('-')[0].upper(), 'finish')
    with open(work_dir / 'attempts', 'a') as file:
        file.write(' '.join(sys.argv) + '\\n')
    if mode == 'hang':
        (work_dir / 'started').touch()
        time.sleep(60)
    if mode == 'preempt' and not (work_dir / 'epoch_1.pth').exists():
        (work_dir / 'epoch_1.pth').touch()
        os.kill(os.getppid(), signal.SIGUSR2)  # what Slurm does to the job
        time.sleep(60)
    if mode == 'terminate':
        os.kill(os.getppid(), signal.SIGTERM)
        time.sleep(60)
    if mode == 'fail':
        sys.exit('out of memory')
    if mode == 'half':
        (work_dir / 'epoch_1.pth').touch()
        print('Traceback (most recent call last):')
        print('torch.OutOfMemoryError: out of memory')
        sys.exit('[W0101 00:00:00] something else')
    log = work_dir / time.strftime('%Y%m%d_%H%M%S') / 'vis_data'
    log.mkdir(parents=True, exist_ok=True)
    with open(log / 'scalars.json', 'w') as file:
        for epoch in (1,) if mode == 'unvalidated' else (1, 2):
            step = 10 * epoch
            print(json.dumps(dict(lr=0.1, loss=1.0, step=step)), file=file)
            value = float('nan') if mode == 'nan' else epoch / 10
            values = {'coco/bbox_mAP': value, 'time': 1.0, 'step': epoch}
            print(json.dumps(values), file=file)
        print('{"lr": 0.1, "lo', file=file)
    if mode == 'diverge':
        sys.exit('DivergenceError: Training diverged at iteration 17: loss is nan.')
"""
DIST_TRAIN = """#!/bin/sh
exec "$PYTHON" "$(dirname "$0")/train.py" "$@"
"""
SMALL_CONFIG = """
    data_root = 'data/x/'
    train_dataloader = dict(batch_size=8)
    train_cfg = dict(max_epochs=2)
"""
SMALL_GRID = """
    small:
      title: Small
      head: [Method]
      figures: [AP]
      scales:
        mini:
          config: "configs/{row}.py"
          data: none
          metrics: [{name: AP, key: coco/bbox_mAP, factor: 100}]
      columns:
        b2: {label: batch 2, options: {train_dataloader.batch_size: 2}}
        b4: {label: batch 4}
      rows:
        a: {label: [A], config: a, paper: [10.0, NaN]}
        b: {label: [B], config: b, paper: [20.5, 30.0]}
"""


def make_project(root):
    """Write a project whose train program only pretends to train; its root."""
    for path, text in {
        'tools/paper/tables.yml': SMALL_GRID,
        'configs/a.py': SMALL_CONFIG,
        'configs/b.py': SMALL_CONFIG,
        'tools/train.py': TRAIN,
        'tools/dist_train.sh': DIST_TRAIN,
    }.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(textwrap.dedent(text))
    (root / 'tools/dist_train.sh').chmod(0o755)
    return root


def record(row, column, seed, value, **kwargs):
    """A record of the small table."""
    return {
        'run': f'{row}-{column}-s{seed}',
        'row': row,
        'column': column,
        'seed': seed,
        'outcome': 'finished',
        'metrics': {} if value is None else {'coco/bbox_mAP': value},
        'date': '2026-11-22',
        'revision': 'aaaa',
        'versions': {'torch': '2.13.0'},
        'hardware': dict(cpu='CPU', cores=2, gpu=None, threads=1, processes=1, jobs=2),
        **kwargs,
    }


def write(folder, *records):
    """Write records of the small table."""
    for r in records:
        write_record(folder / 'small-mini.jsonl', r)
