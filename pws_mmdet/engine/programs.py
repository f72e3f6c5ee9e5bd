"""Run MMDetection's own programs in this process, with this package's runner."""

import argparse
import json
import os
import runpy
import sys
import time
import traceback
from pathlib import Path

import mmdet
import mmengine.config
import mmengine.runner

from ..compat import INSTALL
from ..utils.config import ConfigOptions
from .runner import PWSRunner


def run_mmdet_program(name: str) -> None:
    """Run one of the installed MMDetection's programs in this process.

    What is wrong before its loop over data begins, with the config, a checkpoint or
    the data, ends it with the exit status 2 and the error alone, without a traceback
    unless the environment has PWS_DEBUG.

    Args:
        name: Its path below MMDetection's ``tools/``, such as 'train.py'.

    Raises:
        FileNotFoundError: If the installation holds no such program.
        Exception: Whatever ends the loop.
    """
    package = Path(mmdet.__file__).parent
    # The first path is that of a wheel of mmdet, the second that of a checkout.
    candidates = [package / '.mim' / 'tools' / name, package.parent / 'tools' / name]
    program = next((path for path in candidates if path.is_file()), None)
    if program is None:
        raise FileNotFoundError(
            f'The mmdet in {package} came without its tools: there is no '
            f'{" nor ".join(map(str, candidates))}. Reinstall it: {INSTALL}'
        )
    mmengine.runner.Runner = PWSRunner
    mmengine.config.DictAction = ConfigOptions
    show_usage = argparse.ArgumentParser.error

    def stop_at_arguments(parser: argparse.ArgumentParser, message: str) -> None:
        _tell_launcher(f'{parser.prog}: error: {message}')
        show_usage(parser, message)

    try:
        argparse.ArgumentParser.error = stop_at_arguments
        runpy.run_path(str(program), run_name='__main__')
    except Exception as e:
        # In the form of a traceback's last lines: people search logs for that.
        text = ''.join(traceback.format_exception_only(e)).rstrip()
        if os.environ.get('PWS_DEBUG') or _has_begun(e):
            _tell_launcher(text)
            raise
        if config := _config_of(e):
            text = f'ValueError: {config} cannot be read: {text}'
        text = f'{name} stops; PWS_DEBUG=1 shows where:\n{text}'
        print(text, file=sys.stderr)
        _tell_launcher(text)
        sys.exit(2)
    finally:
        argparse.ArgumentParser.error = show_usage


def _tell_launcher(text: str) -> None:
    """Under torch.distributed.run, leave an error for tools/launch.py to show last."""
    if path := os.environ.get('TORCHELASTIC_ERROR_FILE'):
        error = dict(message=text, timestamp=int(time.time()))
        Path(path).write_text(json.dumps(error))


def _has_begun(error: Exception) -> bool:
    """Whether an error is one of a loop over data that runs."""
    frames = (frame for frame, _ in traceback.walk_tb(error.__traceback__))
    return any(
        frame.f_code.co_name == 'run'
        and isinstance(frame.f_locals.get('self'), mmengine.runner.BaseLoop)
        for frame in frames
    )


def _config_of(error: Exception) -> str | None:
    """The config that could not be read."""
    for frame, _ in traceback.walk_tb(error.__traceback__):
        if frame.f_code is mmengine.config.Config.fromfile.__code__:
            return str(frame.f_locals['filename'])
    return None
