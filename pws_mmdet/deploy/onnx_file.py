"""Write a network as an ONNX file, and change the score threshold of the file."""

import warnings
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch
from packaging.version import Version
from torch import nn

from .operators import TRANSLATIONS

OPSET = 18
TORCH = '2.7'  # the first version whose exporter takes a custom_translation_table
INSTALL = "pip install -e '.[onnx]'"


def check_extra() -> None:
    """Raise an ImportError that says what to install, if something is missing."""
    if Version(torch.__version__) < Version(TORCH):
        raise ImportError(f'The export needs torch>={TORCH}, not {torch.__version__}')
    for name in ('onnx', 'onnxscript', 'onnxruntime'):
        try:
            import_module(name)
        except ImportError as e:
            raise ImportError(
                'The export needs onnx, onnxscript and onnxruntime, and importing '
                f'{name} failed ({e}): {INSTALL}'
            ) from e


def write_onnx(
    network: nn.Module,
    path: str | Path,
    outputs: list[str],
    size: tuple[int, int],
    fixed_size: bool = False,
    least_score: float | None = None,
) -> None:
    """Write a network that takes images as an ONNX file.

    Args:
        network: Takes float32 (N, 3, H, W); in evaluation mode.
        path: The file. An existing file is overwritten.
        outputs: Names of the outputs.
        size: Height and width of the images that the network is traced with.
        fixed_size: True makes a graph for this size only. False makes a graph for
            all sizes; then ``size`` must leave more than one value in each direction
            of every feature map, because torch.export takes a size of 1 for a constant.
        least_score: The score threshold, the second input of the network. The file
            holds it as a constant; ``set_least_score`` replaces it. None if the
            network has no such input.

    Raises:
        RuntimeError: If the network cannot be traced.
    """
    names = {0: 'batch'} if fixed_size else {0: 'batch', 2: 'height', 3: 'width'}
    free = dict.fromkeys(names, torch.export.Dim.DYNAMIC)
    inputs = dict(images=torch.zeros(2, 3, *size))
    if least_score is not None:
        inputs['least_score'] = torch.tensor(float(least_score))
    fixed = (None,) * (len(inputs) - 1)
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter('ignore')
        try:
            program = torch.export.export(
                network, tuple(inputs.values()), dynamic_shapes=(free, *fixed)
            )
        except Exception as e:  # torch.export raises many types
            hint = '' if fixed_size else ' With --shape the size is fixed.'
            raise RuntimeError(f'torch.export cannot trace it: {e}{hint}') from e
        onnx_program: Any = torch.onnx.export(
            program,
            dynamo=True,
            input_names=list(inputs),
            output_names=outputs,
            dynamic_shapes=(names, *fixed),
            opset_version=OPSET,
            custom_translation_table=TRANSLATIONS,  # type: ignore[arg-type]
            verbose=False,
        )
    onnx_program.save(str(path))
    if least_score is not None:
        set_least_score(path, least_score)


def set_least_score(path: str | Path, value: float) -> None:
    """Set the score threshold of a file that ``write_onnx`` wrote."""
    import onnx

    model = onnx.load(str(path))
    for values in (model.graph.input, model.graph.initializer):
        for old in [v for v in values if v.name == 'least_score']:
            values.remove(old)
    constant = onnx.numpy_helper.from_array(np.array(value, np.float32), 'least_score')
    model.graph.initializer.append(constant)
    onnx.save(model, str(path))
