"""The kinds of layers that gpu.py compares."""

from typing import Any

import kinds
import torch
import torch.nn.functional as F
from kinds import Kind, with_bias
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from pws_mmdet.layers import ReparamConv2d
from pws_mmdet.layers.filter_kernel import use_filter_kernel


class ScaledWSConv2d(ReparamConv2d):
    """A convolution with scaled weight standardization.

    Its filters are gain * (W - E) / sqrt(n Var + eps), with a trained gain for
    each filter of n weights, which starts at 1.

    Source: Brock et al. 2021, "Characterizing signal propagation to close the
    performance gap in unnormalized ResNets", equation (2).
    """

    eps = 1e-4

    def __init__(self, *args, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        self.gain = nn.Parameter(torch.ones(self.out_channels))

    def reset_parameters(self) -> None:
        super().reset_parameters()
        nn.init.kaiming_normal_(self.weight)

    def effective_weight(self) -> Tensor:
        # sqrt(n Var + eps) = sqrt(n) sqrt(Var + eps / n), by the kernel that PWS
        # uses
        n = self.weight[0].numel()
        w = F.group_norm(
            self.weight.float().view(1, self.out_channels, n),
            self.out_channels,
            self.gain * n**-0.5,
            eps=self.eps / n,
        )
        return w.view(self.weight.shape).to(self.weight.dtype)


def make_kinds() -> dict[str, Kind]:
    """Return the kinds of speed.py, frozen BN, ScaledWS, and PWS without the kernel."""
    made = kinds.make_kinds()
    made['frozen BN'] = made['BN']._replace(
        norm_cfg=dict(type='BN', requires_grad=False)
    )
    made['PWS, group norm'] = made['PWS']
    made['ScaledWS'] = Kind(with_bias('BenchmarkScaledWS', ScaledWSConv2d))
    return made


def prepare(contender: Any, frozen: bool, amp: bool) -> Any:
    """Change a contender for the GPU.

    It is built on its device, which is faster. It turns the Triton kernel on or off
    before each step, as its name says. In mixed precision it infers under autocast.

    Args:
        contender: The contender.
        frozen: Its BN is frozen.
        amp: Mixed precision.
    """
    build, run = contender.build, contender.run
    prepare_step = contender.prepare

    def prepare_with_kernel() -> None:
        use_filter_kernel(contender.name != 'PWS, group norm')
        prepare_step()

    def build_fast(device: torch.device, *args) -> None:
        try:
            with torch.device(device):
                build(device, *args)
        except Exception:
            if device.type == 'cpu':
                raise
            build(device, *args)
        for module in contender.model.modules():
            if frozen and isinstance(module, _BatchNorm):
                module.eval()

    def run_under_autocast() -> Any:
        with torch.autocast(contender.device.type, torch.float16):
            return run()

    contender.build = build_fast
    contender.prepare = prepare_with_kernel
    if amp and contender.inference:
        contender.run = run_under_autocast
    return contender
