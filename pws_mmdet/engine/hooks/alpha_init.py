import copy
import logging
import math
import os.path
import re
from collections.abc import Sequence
from numbers import Real

import torch
from mmengine.dist import all_reduce
from mmengine.hooks import Hook
from mmengine.logging import print_log
from mmengine.registry import HOOKS
from mmengine.runner import Runner
from torch import Tensor

from ...layers import PWSConv2d
from ...utils.model import unwrap_model
from ..optimizers import training_context


@HOOKS.register_module(force=True)
class PWSAlphaInitHook(Hook):
    """Data-dependent alpha: alpha := sqrt(2 / Var[Y]) before the first step.

    One additional forward pass of the first batch sets the alpha of one PWS
    layer after the other, so that each sees what its predecessors now put out;
    a layer that is applied several times counts its first application. Var[Y],
    over all values of the layer's output at alpha = 1, is averaged over the
    processes: all of them go on with the same value.

    An alpha is left as it is if it was loaded from a checkpoint (``Pretrained``
    or ``load_from``), is frozen or absent, or if the run is resumed. A frozen layer
    whose filters are those of a trained one is its copy, as in the teacher of
    semi-supervised training (SoftTeacher), and gets the same alpha.

    alpha stays within 1/4 and 4 (``bound``). Where images are not normalized, as in
    YOLOX, the first layer would get a tiny alpha, and the first step of SGD would
    change it by more than its size. With the bound, the next layers take the rest.

    Outputs of variance 2 in every layer of a deep network come with large gradients,
    and no norm layer makes the steps smaller: clip gradients, as with
    ``optim_wrapper.clip_grad.max_norm=10``. docs/inside.md says why.

    Args:
        exclude: Regular expressions, searched in the names of the layers, of
            those to leave alone. The default is the authors' choice: in a
            ResNet's blocks only conv1 and the downsampling are initialized.
        bound: The largest alpha, and its inverse the smallest; ``math.inf`` for none.

    Raises:
        ValueError: If the bound is no number of at least 1.

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
        # Comes before MMEngine initializes or loads anything. Only the keys that
        # reach a layer tell whether its alpha was loaded.
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
        if runner.iter > 0:  # resumed
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
        # After the pass, and not in it: a process may have had no RoI for a head.
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
        """Var[Y] of each layer at alpha = 1, in a pass that sets one after the other.

        0 stands for a variance that is of no use; layers without outputs are left out.
        """
        variance: dict[PWSConv2d, float] = {}

        def set_alpha(conv: PWSConv2d, args: tuple, kwargs: dict, y: Tensor):
            if conv in variance or y.numel() == 0:  # no RoI was sampled
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
        print_log(
            f'PWSAlphaInitHook set the alpha of {number} layers', logger='current'
        )
        if without:
            print_log(
                'PWSAlphaInitHook left alpha at 1 where the first batch gave no '
                f'output, or one without a finite variance: {", ".join(without)}',
                logger='current',
                level=logging.WARNING,
            )
        if beyond:
            print_log(
                f'PWSAlphaInitHook kept alpha within {1 / self.bound:.3g} and '
                f'{self.bound:.3g} where the first batch asks for other values: '
                f'{", ".join(beyond)}. If the first layer is among them, the images '
                'are not normalized: set mean and std in data_preprocessor',
                logger='current',
                level=logging.WARNING,
            )

    def _bounded(self, alpha: float) -> float:
        return min(max(alpha, 1 / self.bound), self.bound)


def _pws_layers(runner: Runner) -> dict[str, PWSConv2d]:
    modules = unwrap_model(runner.model).named_modules()
    return {name: m for name, m in modules if isinstance(m, PWSConv2d)}


def _frozen_copies(
    every: dict[str, PWSConv2d], trained: dict[str, PWSConv2d]
) -> dict[PWSConv2d, PWSConv2d]:
    """The frozen layers that are copies of trained ones, each with its source.

    A teacher is copied before the first step, so it has the filters of its student
    but not the new alpha. Where several have the same filters, the one whose name
    ends most alike is the source.
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
