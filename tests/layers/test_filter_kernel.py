"""The Triton kernel on a CPU, by Triton's interpreter."""

import os
import subprocess
import sys

import pytest
import torch

from pws_mmdet import standardize_weight
from pws_mmdet.layers.filter_kernel import use_filter_kernel


def test_the_tests_of_the_kernel_pass_in_the_interpreter(root):
    # The interpreter of older versions computes something else.
    pytest.importorskip('triton', minversion='3.0', reason='there is no Triton 3')
    process = subprocess.run(
        [sys.executable, '-m', 'pytest', '-q', '-p', 'no:cacheprovider', '-m', 'gpu']
        + ['tests/gpu/test_gpu_filters.py'],
        cwd=root,
        capture_output=True,
        text=True,
        # It has to be set before Triton is imported.
        env=dict(os.environ, TRITON_INTERPRET='1', PWS_GPU_TESTS_ON='cpu'),
    )
    assert process.returncode == 0, process.stdout + process.stderr
    assert ' passed' in process.stdout


def test_a_cpu_keeps_to_group_norm():
    weight = torch.randn(4, 36, requires_grad=True)
    made = standardize_weight(weight)
    use_filter_kernel(False)
    try:
        wanted = standardize_weight(weight)
    finally:
        use_filter_kernel(True)
    assert torch.equal(made, wanted)
    assert 'Standardize' not in type(made.grad_fn).__name__


def test_the_dtype_of_the_filters_can_be_chosen():
    weight = torch.randn(4, 36)
    made = standardize_weight(weight, dtype=torch.bfloat16)
    assert torch.equal(made, standardize_weight(weight).bfloat16())
