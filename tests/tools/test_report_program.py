"""Tests of tools/analysis_tools/report.py."""

import sys

import cv2
import numpy as np
import pytest
from variance_data import write_record

pytest.importorskip('plotly', reason='the extra `report` is not installed')


@pytest.fixture
def main(load_program, monkeypatch, tmp_path):
    """Run the program; return the path of the page that it writes."""
    program = load_program('tools/analysis_tools/report.py')

    def run_main(*args):
        path = tmp_path / 'new' / 'report.html'
        arguments = ['report.py', *map(str, args), '-o', str(path)]
        monkeypatch.setattr(sys, 'argv', arguments)
        program.main()
        return path

    return run_main


@pytest.fixture
def work_dirs(tmp_path):
    return [write_record(tmp_path / name, (1, 10)) for name in ('PWS', 'Normal')]


def test_every_option(main, work_dirs, tmp_path, capsys):
    for name in ('images', 'none'):
        (tmp_path / name).mkdir()
        for i in range(3):
            path = tmp_path / name / f'{name}-{i}.png'
            cv2.imwrite(str(path), np.zeros((4, 4, 3), np.uint8))
    path = main(
        *(*work_dirs, '--labels', 'A', 'B', '--title', 'A & B', '--images', 1),
        *('--image-dir', tmp_path / 'images', '--image-dir', tmp_path / 'none'),
    )
    assert capsys.readouterr().out == f'written to {path}\n'
    text = path.read_text()
    assert '<h1>A &amp; B</h1>' in text
    assert 'A</text>' not in text and text.count('<figure>') == 2
    assert 'images-2.png' in text and 'images-1.png' not in text


@pytest.mark.parametrize(
    'args, message',
    [
        ('{dir}/none', 'none is no work_dir of a training'),
        ('{dir}/PWS {dir}/PWS', "are both 'PWS': tell them apart"),
        ('{dir}/PWS --labels a b', '1 WORK_DIRs but 2 --labels'),
        ('{dir}/PWS {dir}/Normal --image-dir x', '2 WORK_DIRs but 1 --image-dir'),
        ('{dir}/PWS --image-dir {dir}/none', 'none holds no image'),
        ('{dir}/PWS --image-dir {dir}/broken', 'broken/1.png is no image'),
    ],
)
def test_errors(main, work_dirs, tmp_path, capsys, args, message):
    (tmp_path / 'broken').mkdir()
    (tmp_path / 'broken/1.png').write_text('nothing')
    with pytest.raises(SystemExit) as e:
        main(*args.format(dir=tmp_path).split())
    assert e.value.code == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / 'new').exists()


@pytest.mark.slow
def test_without_plotly(run, root):
    program = root / 'tools/analysis_tools/report.py'
    code = (
        'import runpy, sys; sys.modules["plotly.graph_objects"] = None; '
        f'runpy.run_path({str(program)!r}, run_name="__main__")'
    )
    process = run(sys.executable, '-c', code, check=False)
    assert process.returncode == 1
    last = process.stdout.splitlines()[-1]
    assert last.startswith('pws-report needs plotly: pip install plotly')
