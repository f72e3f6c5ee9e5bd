"""Tests of docs/tutorial.ipynb."""

import hashlib
import json
import os
import re

import pytest
from conftest import ROOT

PATH = ROOT / 'docs/tutorial.ipynb'
MOST_BYTES = 500_000
MOST_LINES_OF_A_CELL = 20


def source(cell):
    return ''.join(cell['source'])


@pytest.fixture(scope='module')
def notebook():
    return json.loads(PATH.read_text(encoding='utf-8'))


def test_its_outputs_are_those_of_its_cells(notebook):
    """If not: python tools/misc/run_notebook.py docs/tutorial.ipynb"""
    text = '\0'.join(f'{c["cell_type"]}\0{source(c)}' for c in notebook['cells'])
    digest = hashlib.sha256(text.encode()).hexdigest()
    assert notebook['metadata']['digest'] == digest
    code = [cell for cell in notebook['cells'] if cell['cell_type'] == 'code']
    counts = [cell['execution_count'] for cell in code]
    assert counts == [*range(1, len(code) + 1)]


def test_it_can_be_read(notebook):
    """Its cells are short, and its outputs have no errors, warnings and paths."""
    assert PATH.stat().st_size < MOST_BYTES
    for cell in notebook['cells']:
        if cell['cell_type'] == 'code':
            assert len(source(cell).splitlines()) <= MOST_LINES_OF_A_CELL
        for output in cell.get('outputs', ()):
            assert output['output_type'] != 'error'
            assert output.get('name') != 'stderr', output['text']
            text = ''.join(
                output.get('text', output.get('data', {}).get('text/plain', ''))
            )
            assert not re.search(r'/(tmp|home|root|work|usr)/', text), text
            assert 'arning' not in text


@pytest.mark.slow
def test_it_runs(load_program, tmp_path, monkeypatch):
    nbformat = pytest.importorskip(
        'nbformat', reason='the extra `tests` is not installed'
    )
    pytest.importorskip('nbclient', reason='the extra `tests` is not installed')
    pytest.importorskip('ipykernel', reason='the extra `tests` is not installed')
    program = load_program('tools/misc/run_notebook.py')
    monkeypatch.setenv('JUPYTER_PATH', os.environ.get('JUPYTER_PATH', ''))
    notebook = nbformat.read(PATH, as_version=4)
    assert program.digest(notebook) == notebook.metadata.digest
    program.execute(notebook, tmp_path)
