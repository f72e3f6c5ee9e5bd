"""Run MMDetection's own programs in this process, with this package's runner."""

import argparse
import json
import os
import runpy
import sys
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import mmdet
import mmengine.config
import mmengine.runner

from ..compat import INSTALL
from ..utils.config import ConfigOptions
from .runner import PWSRunner


def run_mmdet_program(name: str) -> None:
    """Run a program of the installed MMDetection in this process.

    An error in the config, the checkpoint or the data is printed without a traceback,
    and the exit status is 2. An error after the first step has begun, and every error
    where the environment has PWS_DEBUG, keeps its traceback.

    Args:
        name: Path of the program below MMDetection's ``tools/``, such as 'train.py'.

    Raises:
        FileNotFoundError: If the installation has no such program.
        SystemExit: If the program ends before its loop over data.
        Exception: Any error of the loop.
    """
    program = _find_program(name)
    with _replaced_classes():
        try:
            runpy.run_path(str(program), run_name='__main__')
        except Exception as e:
            # People search logs for the last lines of a traceback: keep their form.
            text = ''.join(traceback.format_exception_only(e)).rstrip()
            if os.environ.get('PWS_DEBUG') or _is_of_running_loop(e):
                _tell_launcher(text)
                raise
            if config := _unreadable_config(e):
                text = f'ValueError: {config} cannot be read: {text}'
            text = f'{name} stops; PWS_DEBUG=1 shows where:\n{text}'
            print(text, file=sys.stderr)
            _tell_launcher(text)
            sys.exit(2)


def _find_program(name: str) -> Path:
    package = Path(mmdet.__file__).parent
    # The first path is that of a wheel of mmdet, the second that of a checkout.
    candidates = [package / '.mim' / 'tools' / name, package.parent / 'tools' / name]
    program = next((path for path in candidates if path.is_file()), None)
    if program is None:
        raise FileNotFoundError(
            f'The mmdet in {package} came without its tools: there is no '
            f'{" nor ".join(map(str, candidates))}. Reinstall it: {INSTALL}'
        )
    return program


@contextmanager
def _replaced_classes() -> Iterator[None]:
    """Replace what the programs import from MMEngine, and restore it afterwards."""
    show_usage = argparse.ArgumentParser.error

    def stop_at_arguments(parser: argparse.ArgumentParser, message: str) -> None:
        _tell_launcher(f'{parser.prog}: error: {message}')
        show_usage(parser, message)

    replacements: list[tuple[Any, str, Any]] = [
        (mmengine.runner, 'Runner', PWSRunner),
        (mmengine.config, 'DictAction', ConfigOptions),
        (argparse.ArgumentParser, 'error', stop_at_arguments),
    ]
    originals = [(owner, name, getattr(owner, name)) for owner, name, _ in replacements]
    try:
        for replacement in replacements:
            setattr(*replacement)
        yield
    finally:
        for original in originals:
            setattr(*original)


def _tell_launcher(text: str) -> None:
    """Write an error where torch.distributed.run collects it.

    tools/launch.py shows it as the last line.
    """
    if path := os.environ.get('TORCHELASTIC_ERROR_FILE'):
        error = dict(message=text, timestamp=int(time.time()))
        Path(path).write_text(json.dumps(error))


def _is_of_running_loop(error: Exception) -> bool:
    """Tell whether an error was raised while a loop over data was running."""
    frames = (frame for frame, _ in traceback.walk_tb(error.__traceback__))
    return any(
        frame.f_code.co_name == 'run'
        and isinstance(frame.f_locals.get('self'), mmengine.runner.BaseLoop)
        for frame in frames
    )


def _unreadable_config(error: Exception) -> str | None:
    """Return the path of the config whose reading raised an error."""
    for frame, _ in traceback.walk_tb(error.__traceback__):
        if frame.f_code is mmengine.config.Config.fromfile.__code__:
            return str(frame.f_locals['filename'])
    return None
