"""The console scripts. Each runs the `main` of a program in `tools/`.

A checkout has the programs in `tools/`, a wheel in `pws_mmdet/.mim/tools`. Usage
and errors show the name of the script: argparse takes it from `sys.argv`.
"""

import sys
from importlib.util import module_from_spec, spec_from_file_location

from .utils.repository import find_file


def run_program(path: str) -> None:
    """Run a program with the arguments of this process.

    Args:
        path: Its path in the repository, such as 'tools/misc/make_norm_free.py'.

    Raises:
        SystemExit: If the package came without the program, or from the program.
    """
    try:
        program = find_file(path)
    except FileNotFoundError as error:
        sys.exit(str(error))
    spec = spec_from_file_location(program.stem, program)
    assert spec is not None and spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    module.main()


def norm_free() -> None:
    """`pws-norm-free`: write the norm-free variant of a config."""
    run_program('tools/misc/make_norm_free.py')


def convert() -> None:
    """`pws-convert`: convert a checkpoint with BN into one with PWS."""
    run_program('tools/model_converters/bn_to_pws.py')


def fuse() -> None:
    """`pws-fuse`: convert a trained PWS detector to one of plain convolutions."""
    run_program('tools/model_converters/fuse_pws.py')


def onnx() -> None:
    """`pws-onnx`: export a detector to ONNX."""
    run_program('tools/deployment/pws_to_onnx.py')


def summarize() -> None:
    """`pws-summarize`: say what the model of a config is made of."""
    run_program('tools/analysis_tools/summarize.py')


def gamma() -> None:
    """`pws-gamma`: suggest gamma for the PWS convolutions of a config."""
    run_program('tools/analysis_tools/suggest_gamma.py')


def report() -> None:
    """`pws-report`: write a report of trainings as one HTML file."""
    run_program('tools/analysis_tools/report.py')
