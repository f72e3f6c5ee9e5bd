"""Programs get random and hostile arguments.

Each run succeeds, or it prints one error that says why and leaves no file behind.
"""

import argparse
import errno
import io
import json
import logging
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from conftest import ROOT, Hostile, load_config
from hypothesis import example, given, settings
from hypothesis import strategies as st

from pws_mmdet.checkpoint.load import load_file

pytest.importorskip('plotly', reason='the extra `report` is not installed')

PROGRAMS = sorted(
    str(path.relative_to(ROOT))
    for folder in (ROOT / 'tools').iterdir()
    if folder.is_dir()
    for path in folder.glob('*.py')
    if "if __name__ == '__main__':" in path.read_text()
    and path.name != 'make_metafile.py'  # it has no arguments
)
PROGRAMS += ['benchmarks/conversion_mmdet.py', 'benchmarks/train_speed.py']
# Options that keep a run short if no argument is wrong
CHEAP = {
    'run_table.py': ['--dry-run'],
    'digits_to_coco.py': ['--num-train', '1', '--num-val', '1', '--size', '32'],
    'train_speed.py': ['--steps', '1', '--warmup', '1', '--threads', '1'],
}
CONV = dict(type='PWS', in_channels=2, out_channels=2, kernel_size=3)
WORDS = [
    *('', '-', '.', '..', '/', 'none', 'none/none.py', 'none.pth', 'empty.py/x.png'),
    *('0', '-1', '1', '2', '33', '1.5', 'nan', 'inf', '1e400', 'é\n', '\x1b[', '%s{}'),
    *('a=1', 'model=1', 'model.type=NoNorm', 'model.gama=1', '=', 'a.b.c=[1', 'model'),
    *('table1', 'table4', 'mini', 'pws*', '(', 'conv', 'cpu', 'cuda:9', 'meta'),
    *('out.png', 'out.svg', 'out.pth', 'out.py', 'out.onnx', 'out.html', 'new/out.csv'),
    *('mmdet::none.py', 'torchvision::none', 'mmdet::../x.py'),
    *('9' * 23, '1e300', 'conv.py/x', 'loop', 'l' * 300, 'default_scope=3'),
    *('s3://x', 'openmmlab://x', 'model.test_cfg=None'),
]


REPEATABLE = settings(derandomize=True, deadline=None, database=None)
# For the name of an argument: how the values end that the program expects
LIKELY = dict(
    config='.py',
    configs='.py',
    checkpoint='.pth',
    out=('out.png', 'out.pth', 'out.py', 'out.onnx', 'out.html'),
    records=('.json', '.jsonl', 'records', 'work', 'bad'),
    work_dirs=('work', 'bad'),
    record=('work', 'bad'),
    table='table1',
    image='.png',
    cfg_options=('=1', 'NoNorm'),
    shape=('1', '2', '33'),
)


DETECTOR = 'DETECTOR'  # replaced by the path of the fixture `detector`
LOOP = 'a link to itself'


class Exit(Exception):
    """Raised in the place of parse_args, when the parser is complete."""


def write_inputs(folder):
    """Write files of all kinds. A program can use only a few of them."""
    configs = dict(
        conv=f'model = {CONV}',
        norm="model = dict(type='NoNorm', num_features=2)",
        typo=f'model = {dict(CONV, gama=1)}',
        unknown="model = dict(type='None')",
        text="model = 'x'",
        nothing='x = 1',
        syntax='model = (',
        raises='model = 1 / 0',
        exits='raise SystemExit(0)',
        base="_base_ = 'none.py'",
        odd=f'model = {CONV}\noptim_wrapper = 3\ntrain_dataloader = []',
    )
    for name, text in configs.items():
        (folder / f'{name}.py').write_text(text)
    weights = {'weight': torch.ones(2, 2, 3, 3), 'backbone.w': torch.ones(2)}
    checkpoints = dict(
        weights=weights,
        list=[weights],
        number=3,
        nested=dict(state_dict=[1], meta=[2]),
        keys=dict(state_dict={1: torch.ones(1), 'backbone.w': 3}, meta=None),
        nan=dict(state_dict={k: v * torch.nan for k, v in weights.items()}),
        alpha={'conv1.alpha': torch.ones(2, 1, 1, 1), 'layer1.0.conv1.weight': 1},
        config=dict(weights, meta=dict(cfg='1 / 0', config='1 / 0')),
        hostile=dict(state_dict=weights, meta=Hostile(folder / 'executed')),
    )
    for name, content in checkpoints.items():
        torch.save(content, folder / f'{name}.pth')
    whole = (folder / 'weights.pth').read_bytes()
    (folder / 'truncated.pth').write_bytes(whole[:-300])
    for suffix in ('py', 'pth', 'json', 'png'):
        (folder / f'empty.{suffix}').touch()
    cv2.imwrite(str(folder / 'image.png'), np.zeros((8, 8, 3), np.uint8))
    for name in ('image.py', 'image.pth', 'image.json'):
        shutil.copy(folder / 'image.png', folder / name)
    record = dict(
        run='a', outcome='finished', metrics={}, label='a', curve=[dict(epoch=1, x=1)]
    )
    for name, content in dict(
        record=record, list=[], null=None, curve=dict(record, curve=[1]), few={'run': 1}
    ).items():
        (folder / f'{name}.json').write_text(json.dumps(content))
    entries = dict(
        work=[dict(lr=0.1, loss=1, step=1), dict(x=1, step=1)],
        bad=[[1], 3, 'x', None, dict(lr='x', step='y'), dict(step=None)],
    )
    layer = dict(name='a', type='b', n=9, filters=4, gamma=0.0, frozen=False)
    step = dict(step=1, lr=0.1, loss=1.0, values={})
    variances = dict(work=[dict(layers=[layer]), step], bad=[dict(layers=[3]), [1], {}])
    for name in entries:
        run = folder / name / '20260101_000000'
        (run / 'vis_data').mkdir(parents=True)
        for path, lines in (
            ('vis_data/scalars.json', entries[name]),
            ('variance.jsonl', variances[name]),
        ):
            (run / path).write_text(''.join(json.dumps(line) + '\n' for line in lines))
    (folder / 'folder').mkdir()
    (folder / 'loop').symlink_to('loop')
    (folder / 'records').mkdir()
    lines = [
        (folder / f'{name}.json').read_text() for name in ('record', 'few', 'list')
    ]
    (folder / 'records/table1-mini.jsonl').write_text('\n'.join(lines))


@pytest.fixture(scope='module')
def inputs(tmp_path_factory):
    folder = tmp_path_factory.mktemp('inputs')
    write_inputs(folder)
    return folder


@pytest.fixture(scope='module')
def detector(tmp_path_factory):
    """Return a config of a narrow SSD in one file: it is read and built quickly."""
    cfg = load_config('configs/mini/ssd96_vgg16_pws_digits.py')
    channels = (64, 128, 64, 32)
    cfg.model.backbone.width = 0.125
    cfg.model.neck.update(in_channels=channels[:2], out_channels=channels)
    cfg.model.bbox_head.in_channels = channels
    path = tmp_path_factory.mktemp('detector') / 'ssd.py'
    cfg.dump(path)
    return str(path)


def contents(folder):
    """Return the content of each file in a folder, by its path."""
    return {str(path.relative_to(folder)): read(path) for path in folder.rglob('*')}


def read(path):
    if path.is_symlink():
        return LOOP
    return path.read_bytes() if path.is_file() else None


def parser_of(program, patch):
    """Return the argument parser that a program makes."""
    parsers = []

    def note(self, *args, **kwargs):
        parsers.append(self)
        raise Exit

    with patch.context() as inner:
        inner.setattr(argparse.ArgumentParser, 'parse_args', note)
        with pytest.raises(Exit):
            program.main()
    return parsers[0]


def command_lines(parser, words):
    """Return a strategy: all required arguments, and up to two options."""

    def values(action):
        if action.nargs == 0 or isinstance(action, argparse.BooleanOptionalAction):
            return st.just([])
        likely = [w for w in words if w.endswith(LIKELY.get(action.dest, ''))]
        likely = list(map(str, action.choices or likely))
        word = st.sampled_from(likely) | st.sampled_from(words)
        few, many = {'+': (1, 3), None: (1, 1)}.get(action.nargs, (action.nargs,) * 2)
        return st.lists(word, min_size=few, max_size=many)

    needed, optional = [], []
    for action in parser._actions:
        if isinstance(action, argparse._HelpAction):
            continue
        if not action.option_strings:
            needed.append(values(action))
        else:
            option = st.builds(
                lambda name, parts: [name, *parts],
                st.sampled_from(action.option_strings),
                values(action),
            )
            (needed if action.required else optional).append(option)
    return st.builds(
        lambda first, more: [part for parts in (*first, *more) for part in parts],
        st.tuples(*needed),
        st.lists(st.one_of(optional), max_size=2) if optional else st.just([]),
    )


@pytest.fixture
def try_program(inputs, load_program, monkeypatch, capsys):
    """Return a function that loads a program.

    It returns the program and a function that runs the program with some arguments and
    checks how the run ends.
    """

    def load(path):
        name = Path(path).name
        monkeypatch.syspath_prepend((ROOT / path).parent)
        program = load_program(path)
        monkeypatch.chdir(inputs)
        # Loggers of other tests write to files that pytest has closed.
        monkeypatch.setattr(logging, 'raiseExceptions', False)
        monkeypatch.setattr(subprocess, 'Popen', None)  # no training starts
        monkeypatch.setattr('page.revision', lambda root: 'unknown')
        if name == 'digits_to_imagefolder.py':  # it has 1797 images
            splits = dict(train=slice(0, 1), test=slice(1, 2))
            monkeypatch.setattr('digits.imagefolder.SPLITS', splits)
        before = contents(inputs)

        def check(arguments):
            monkeypatch.setattr(sys, 'argv', [name, *CHEAP.get(name, []), *arguments])
            try:
                code = program.main()
            except SystemExit as stop:
                code = stop.code
            output = capsys.readouterr()
            after = contents(inputs)
            for new in sorted(set(after) - set(before), reverse=True):
                target = inputs / new
                if target.is_dir() and not target.is_symlink():
                    target.rmdir()
                else:
                    target.unlink()
            for old, data in before.items():
                if after.get(old) != data:
                    restore(inputs / old, data)
            assert not any('partial' in file for file in after)
            if code not in (0, None):
                assert code in (1, 2)
                assert name in output.err and 'Traceback' not in output.err
                assert after == before
            return code

        return program, check

    return load


def restore(path, data):
    if data == LOOP:
        path.unlink(missing_ok=True)
        path.symlink_to(path.name)
    elif data is not None:
        path.write_bytes(data)


@pytest.mark.parametrize('path', PROGRAMS)
def test_random_arguments(path, inputs, try_program, monkeypatch):
    program, check = try_program(path)
    words = [*WORDS, *(str(p.relative_to(inputs)) for p in sorted(inputs.iterdir()))]
    lines = command_lines(parser_of(program, monkeypatch), words)

    @given(lines)
    @settings(REPEATABLE, max_examples=30)
    def run(line):
        check(line)

    run()


@pytest.mark.parametrize(
    'path, arguments',
    [
        ('summarize', ['conv.py', '--no-macs', '--json']),
        ('report', ['work', '-o']),
    ],
)
def test_a_full_disk_keeps_the_old_file(path, arguments, try_program, monkeypatch):
    _, check = try_program(f'tools/analysis_tools/{path}.py')
    stock = Path.write_text

    def fill(self, text, *args, **kwargs):
        stock(self, text[:10], *args, **kwargs)
        raise OSError(errno.ENOSPC, f'{path}.py: no space left')

    monkeypatch.setattr(Path, 'write_text', fill)
    assert check([*arguments, 'record.json']) == 2


# A command line of each program that is right, or that fails late and quickly
RIGHT = {
    'summarize': ['conv.py', '--no-macs'],
    'conversion_mmdet': [DETECTOR, DETECTOR, 'none.pth', 'out.jsonl'],
    'make_table': ['table1', '--scale', 'mini'],
    'plot_curves': ['record.json', '-o', 'out.png'],
    'plot_variance': ['work', '--figure', 'layers', '--table', 'out.csv'],
    'report': ['work', '-o', 'out.html'],
    'suggest_gamma': [DETECTOR],
    'train_speed': ['conv.py'],
    'digits_to_coco': ['new'],
    'digits_to_imagefolder': ['new'],
    'pws_to_onnx': [DETECTOR, 'none.pth', 'out.onnx'],
    'run_table': ['table1', '--scale', 'mini'],
    'make_norm_free': ['conv.py', 'out.py'],
    'bn_to_pws': [DETECTOR, 'none.pth', 'out.pth'],
    'fuse_pws': [DETECTOR, 'none.pth', 'new'],
    'official_to_pws': ['weights.pth', 'out.pth'],
    'publish_backbone': ['weights.pth', 'out.pth'],
    'run_notebook': ['none.ipynb'],
}
HOSTILE = [
    *('', '0', '-1', 'nan', '1e300', '9' * 23, 'conv.py/x', 'loop', 'l' * 300),
    *('default_scope=3', 'model.test_cfg=None', 's3://x', 'empty.png'),
]


@pytest.mark.parametrize('path', PROGRAMS)
def test_hostile_values_of_each_argument(path, try_program, detector, monkeypatch):
    program, check = try_program(path)
    right = [detector if a == DETECTOR else a for a in RIGHT[Path(path).stem]]
    lines = [
        [*right[:i], word, *right[i + 1 :]]
        for i in range(len(right))
        for word in HOSTILE
    ]
    # There are many options, and most are parsed alike: each gets a third of the words.
    for i, action in enumerate(parser_of(program, monkeypatch)._actions):
        if action.option_strings and action.nargs != 0:
            number = action.nargs if isinstance(action.nargs, int) else 1
            name = action.option_strings[-1]
            lines += [[*right, name, *[word] * number] for word in HOSTILE[i % 3 :: 3]]
    for line in lines:
        check(line)


@pytest.mark.parametrize(
    'name, arguments',
    [
        ('publish_backbone', ['BAD', 'new.pth']),
        ('official_to_pws', ['BAD', 'new.pth']),
        ('fuse_pws', [DETECTOR, 'BAD', 'new']),
        ('bn_to_pws', [DETECTOR, 'BAD', 'new.pth']),
        ('pws_to_onnx', [DETECTOR, 'BAD', 'new.onnx']),
    ],
)
def test_an_error_names_the_file_that_is_no_checkpoint(
    name, arguments, inputs, detector, load_program, monkeypatch, capsys
):
    """No code in the file is executed: no pickled code, and no text of a config."""
    [path] = [path for path in PROGRAMS if Path(path).stem == name]
    program = load_program(path)
    monkeypatch.chdir(inputs)
    before = contents(inputs)
    for checkpoint in sorted(inputs.glob('*.pth')):
        values = {DETECTOR: detector, 'BAD': checkpoint.name}
        line = [values.get(part, part) for part in arguments]
        if name == 'publish_backbone' and checkpoint.stem in ('weights', 'config'):
            continue  # these hold a backbone
        monkeypatch.setattr(sys, 'argv', [name, *line])
        with pytest.raises(SystemExit) as stop:
            program.main()
        error = capsys.readouterr().err
        assert stop.value.code == 2 and checkpoint.name in error
        message = 'was not loaded: it holds' if checkpoint.stem == 'hostile' else ''
        assert message in error
        assert contents(inputs) == before


@given(st.binary(max_size=40), st.integers(0, 1200), st.booleans(), st.booleans())
@example(b'\x80\x02]q\x01', 0, True, True)
@settings(REPEATABLE, max_examples=200)
def test_random_bytes_are_read_or_the_error_names_the_file(
    noise, position, alone, old_format
):
    buffer = io.BytesIO()
    content = dict(state_dict=dict(w=torch.ones(2)), meta=dict(epoch=1))
    torch.save(content, buffer, _use_new_zipfile_serialization=not old_format)
    data = buffer.getvalue()
    position %= len(data)
    if alone:
        data = noise
    else:
        data = data[:position] + noise + data[position + len(noise) :]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, 'noise.pth')
        path.write_bytes(data)
        try:
            load_file(str(path))
        except RuntimeError as error:
            assert 'noise.pth' in str(error)
