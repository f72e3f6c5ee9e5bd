"""Execute a notebook in an empty folder, and save it with its outputs.

It needs nbclient and ipykernel. The notebook's metadata get a digest of its cells, so
that a test can tell whether its outputs are those of its cells.
"""

import argparse
import hashlib
import os
import sys
import tempfile
from pathlib import Path

import nbformat
from ipykernel.kernelspec import write_kernel_spec
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

ROOT = Path(__file__).resolve().parents[2]


def digest(notebook: nbformat.NotebookNode) -> str:
    """Return a digest of the sources of all cells."""
    text = '\0'.join(f'{cell.cell_type}\0{cell.source}' for cell in notebook.cells)
    return hashlib.sha256(text.encode()).hexdigest()


def execute(notebook: nbformat.NotebookNode, folder: Path, timeout: int = 600) -> None:
    """Execute a notebook in a folder, with this interpreter, on one thread.

    Args:
        notebook: The notebook. It gets new outputs.
        folder: An empty folder; what the notebook makes in temporary folders goes
            there, too.
        timeout: Seconds that a cell may take.

    Raises:
        CellExecutionError: If a cell raises an error.
    """
    # This interpreter, whatever kernels the user has installed
    write_kernel_spec(str(folder / 'jupyter/kernels/python3'))
    env = {
        **os.environ,
        'JUPYTER_PATH': str(folder / 'jupyter'),
        'OMP_NUM_THREADS': '1',
        'PYTHONPATH': f'{ROOT}:{os.environ.get("PYTHONPATH", "")}'.rstrip(':'),
        'TMPDIR': str(folder),
    }
    os.environ['JUPYTER_PATH'] = env['JUPYTER_PATH']  # where this process looks
    options = dict(timeout=timeout, resources=dict(metadata=dict(path=str(folder))))
    client = NotebookClient(notebook, kernel_name='python3', **options)
    client.execute(env=env)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('notebook', type=Path, help='such as docs/tutorial.ipynb')
    path = parser.parse_args().notebook
    try:
        notebook = nbformat.read(path, as_version=4)
    except Exception as e:  # a file may hold anything
        parser.error(f'{path} cannot be read as a notebook: {e!r}')
    with tempfile.TemporaryDirectory() as folder:
        try:
            execute(notebook, Path(folder))
        except CellExecutionError as error:
            sys.exit(str(error))
    for cell in notebook.cells:
        cell.metadata.pop('execution', None)  # the times of each cell
    notebook.metadata = dict(
        kernelspec=dict(display_name='Python 3', language='python', name='python3'),
        language_info=dict(name='python'),
        digest=digest(notebook),
    )
    nbformat.write(notebook, path)


if __name__ == '__main__':
    main()
