import logging
import weakref

from mmengine.logging import print_log
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_pre_hook

from ..layers import PWSConv2d

REMEDY = "optim_wrapper.paramwise_cfg=dict(custom_keys={'.alpha': dict(decay_mult=0.)})"
# MMEngine writes what a custom key says to the group of the parameter.
OF_CUSTOM_KEYS = {'lr_mult', 'decay_mult'}
LONGER_KEY = (
    ". Of custom_keys, the longest that is part of a parameter's name counts alone: "
    "where that is one longer than '.alpha', such as 'backbone', add the full names of "
    "its alphas, such as 'backbone.conv1.alpha', with its lr_mult and decay_mult=0."
)
_checked: 'weakref.WeakSet[Optimizer]' = weakref.WeakSet()


def warn_of_decayed_alpha(optimizer: Optimizer, *_) -> None:
    """Warn once of an optimizer that decays an alpha, which the paper does not."""
    if optimizer in _checked:
        return
    _checked.add(optimizer)
    alphas = {id(conv.alpha) for conv in list(PWSConv2d.instances)}
    groups = [
        group
        for group in optimizer.param_groups
        if group.get('weight_decay')
        for p in group['params']
        if id(p) in alphas
    ]
    if groups:
        has_keys = any(OF_CUSTOM_KEYS & group.keys() for group in groups)
        print_log(
            f'The optimizer applies weight decay to the alpha of {len(groups)} PWS '
            'layers, which pulls their output towards 0. Switch it off with '
            f'{REMEDY}{LONGER_KEY if has_keys else ""}',
            logger='current',
            level=logging.WARNING,
        )


# A hook of torch itself, so that it also works for a user who only imports the
# package, whatever builds the optimizer.
register_optimizer_step_pre_hook(warn_of_decayed_alpha)
