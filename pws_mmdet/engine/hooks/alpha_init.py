import copy
import math
import os.path
import re
from collections.abc import Sequence
from numbers import Real

import torch
from mmengine.dist import all_reduce
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmengine.runner import Runner
from torch import Tensor

from ...layers import PWSConv2d
from ...utils.log import inform, warn
from ...utils.model import unwrap_model
from ..training_state import training_context


@HOOKS.register_module(force=True)
class PWSAlphaInitHook(Hook):
    """Set alpha from the first batch: alpha := sqrt(2 / Var[Y]).

    Var[Y] is the variance of all values of a layer's output at alpha = 1. One
    additional forward pass of the first batch sets the alphas in the order of the
    layers, so that each layer sees inputs that its predecessors compute with their new
    alpha. If a layer is called several times, the first call counts. Var[Y] is
    averaged over the processes, so that all of them have the same alpha.

    These alphas are not set:

    * those that were loaded from a checkpoint (``Pretrained`` or ``load_from``);
    * those that are frozen. But if a frozen layer has the filters of a trained one, as
      the teacher has in semi-supervised training (SoftTeacher), it gets the alpha of
      that layer;
    * all of them, if the training is resumed.

    alpha stays between 1/4 and 4 (``bound``). If images are not normalized, as in
    YOLOX, the first layer would get a tiny alpha, and the first step of SGD would
    change it by more than its size. With the bound, the alphas of the next layers
    become smaller instead.

    If every layer of a deep network has outputs of variance 2, gradients are large,
    and no norm layer makes the steps smaller. Clip gradients, as with
    ``optim_wrapper.clip_grad.max_norm=10``. docs/inside.md gives the reason.

    Args:
        exclude: Regular expressions that are searched in the names of layers. The
            layers that match keep their alpha. The default is the authors' choice: in
            the blocks of a ResNet, only conv1 and the downsampling are set.
        bound: The largest alpha. The smallest one is 1 / ``bound``. ``math.inf`` means
            no bound.

    Raises:
        ValueError: If the bound is not a number of at least 1.

    Source: the code of the paper's authors (``initalpha``).
    """

    priority = 'VERY_HIGH'

    def __init__(
        self,
        exclude: Sequence[str] = (r'layer\d+\.\d+\.conv[23]$',),
        bound: float = 4.0,
    ) -> None:
        is_number = isinstance(bound, Real) and not isinstance(bound, bool)
        if not (is_number and bound >= 1):
            raise ValueError(f'bound must be a number of at least 1, got {bound!r}')
        self.bound = bound
        self.exclude = [re.compile(pattern) for pattern in exclude]
        self.loaded: set[PWSConv2d] = set()
        self.handles = []
        self.is_done = False

    def before_run(self, runner: Runner) -> None:
        # before_run comes before MMEngine initializes or loads anything. Only the keys
        # that reach a layer tell whether its alpha was loaded.
        for conv in _pws_layers(runner).values():
            handle = conv._register_load_state_dict_pre_hook(
                self._note_loaded, with_module=True
            )
            self.handles.append(handle)

    def _note_loaded(self, conv: PWSConv2d, state_dict: dict, prefix: str, *_) -> None:
        alpha = state_dict.get(prefix + 'alpha')
        if alpha is not None and conv.alpha is not None:
            if alpha.numel() == conv.alpha.numel():
                self.loaded.add(conv)

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch=None):
        if self.is_done:
            return
        self.is_done = True
        for handle in self.handles:
            handle.remove()
        if runner.iter > 0:  # The training is resumed.
            return
        layers = {
            name: conv
            for name, conv in _pws_layers(runner).items()
            if conv not in self.loaded
            and conv.alpha is not None
            and conv.alpha.requires_grad
            and not any(pattern.search(name) for pattern in self.exclude)
        }
        if layers:
            self._initialize(runner, layers, data_batch)

    def _initialize(
        self, runner: Runner, layers: dict[str, PWSConv2d], data_batch: dict
    ) -> None:
        teachers = _frozen_copies(_pws_layers(runner), layers)
        found = self._variances(runner, layers, data_batch)
        # The processes exchange the variances after the pass. In the pass, one of them
        # may have no RoI for a head, and would not take part.
        votes = torch.zeros(2, len(layers), dtype=torch.float64)
        for i, conv in enumerate(layers.values()):
            if found.get(conv):
                votes[:, i] = torch.tensor((found[conv], 1.0))
        votes = votes.to(next(runner.model.parameters()).device)
        all_reduce(votes)
        without, beyond = [], []
        for (name, conv), (total, count) in zip(
            layers.items(), votes.T.tolist(), strict=True
        ):
            if count:
                alpha = math.sqrt(2 * count / total)
                conv.alpha.data.fill_(self._bounded(alpha))
                if alpha != self._bounded(alpha):
                    beyond.append(f'{name} ({alpha:.2g})')
            else:
                conv.alpha.data.fill_(1)
                without.append(name)
        for copy_, source in teachers.items():
            copy_.alpha.data.copy_(source.alpha)
        self._report(len(layers) - len(without), without, beyond)

    def _variances(
        self, runner: Runner, layers: dict[str, PWSConv2d], data_batch: dict
    ) -> dict[PWSConv2d, float]:
        """Return Var[Y] of each layer at alpha = 1, in a pass that sets the alphas.

        Layers without outputs are left out. A variance of 0, or one that is not
        finite, is returned as 0.
        """
        variance: dict[PWSConv2d, float] = {}

        def set_alpha(conv: PWSConv2d, args: tuple, kwargs: dict, y: Tensor):
            if conv in variance or y.numel() == 0:  # A head may get no RoI.
                return None
            variance[conv] = y.float().var(unbiased=False).item()
            if not 0 < variance[conv] < math.inf:
                variance[conv] = 0.0
                return None
            conv.alpha.fill_(self._bounded(math.sqrt(2 / variance[conv])))
            return conv(*args, **kwargs)

        model = unwrap_model(runner.model)
        handles = [
            conv.register_forward_hook(set_alpha, with_kwargs=True)
            for conv in layers.values()
        ]
        try:
            with torch.no_grad(), training_context(runner):
                for conv in layers.values():
                    conv.alpha.fill_(1)
                data = model.data_preprocessor(copy.deepcopy(data_batch), True)
                model._run_forward(data, mode='loss')
        finally:
            for handle in handles:
                handle.remove()
        return variance

    def _report(self, number: int, without: list[str], beyond: list[str]) -> None:
        inform(f'PWSAlphaInitHook set the alpha of {number} layers')
        if without:
            warn(
                'PWSAlphaInitHook left alpha at 1 in layers whose output for the first '
                'batch is empty, or has no finite and positive variance: '
                f'{", ".join(without)}'
            )
        if beyond:
            warn(
                f'PWSAlphaInitHook limited alpha to {1 / self.bound:.3g} or '
                f'{self.bound:.3g} in layers for which the first batch gives another '
                f'value: {", ".join(beyond)}. If the first layer is one of them, the '
                'images are not normalized: set mean and std in data_preprocessor'
            )

    def _bounded(self, alpha: float) -> float:
        return min(max(alpha, 1 / self.bound), self.bound)


def _pws_layers(runner: Runner) -> dict[str, PWSConv2d]:
    modules = unwrap_model(runner.model).named_modules()
    return {name: m for name, m in modules if isinstance(m, PWSConv2d)}


def _frozen_copies(
    every: dict[str, PWSConv2d], trained: dict[str, PWSConv2d]
) -> dict[PWSConv2d, PWSConv2d]:
    """Return the frozen layers that are copies of trained ones, each with its source.

    A teacher is copied before the first step, so it has the filters of its student,
    but not the new alpha. If several trained layers have the same filters, the source
    is the one whose name has the longest common end.
    """
    copies = {}
    for name, conv in every.items():
        if any(p.requires_grad for p in conv.parameters()):
            continue
        sources = [n for n, source in trained.items() if _have_same(conv, source)]
        if sources:
            nearest = max(sources, key=lambda n: len(_common_end(n, name)))
            copies[conv] = trained[nearest]
    return copies


def _have_same(a: PWSConv2d, b: PWSConv2d) -> bool:
    pairs = ((a.weight, b.weight), (a.alpha, b.alpha))
    return all(x is not None and x.shape == y.shape for x, y in pairs) and all(
        torch.equal(x, y) for x, y in pairs
    )


def _common_end(a: str, b: str) -> str:
    return os.path.commonprefix((a[::-1], b[::-1]))
