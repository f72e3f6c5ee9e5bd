from mmengine.optim import DefaultOptimWrapperConstructor, OptimWrapper
from mmengine.registry import OPTIM_WRAPPER_CONSTRUCTORS
from torch import nn

from ..layers import PWSConv2d


@OPTIM_WRAPPER_CONSTRUCTORS.register_module(force=True)
class PWSOptimWrapperConstructor(DefaultOptimWrapperConstructor):
    """MMEngine's constructor of optimizers, without weight decay for alpha.

    Weight decay would pull the outputs of PWS layers towards 0. Every alpha gets a
    ``weight_decay`` of 0, even if ``paramwise_cfg`` gives it another value. Its
    learning rate, and all other parameters, stay as MMEngine sets them. Use it by name
    in a config:

        optim_wrapper = dict(constructor='PWSOptimWrapperConstructor')

    Source: the authors' code.
    """

    def __call__(self, model: nn.Module) -> OptimWrapper:
        optim_wrapper = super().__call__(model)
        optimizer = optim_wrapper.optimizer
        alphas = {
            parameter
            for module in model.modules()
            if isinstance(module, PWSConv2d)
            # In a pruned or parametrized layer, it has another name, as alpha_orig.
            for name, parameter in module.named_parameters()
            if 'alpha' in name
        }
        for group in list(optimizer.param_groups):
            own = [p for p in group['params'] if p in alphas]
            if not own or not group.get('weight_decay'):
                continue
            others = [p for p in group['params'] if p not in alphas]
            if not others:
                group['weight_decay'] = 0.0
                continue
            group['params'] = others
            optimizer.add_param_group({**group, 'params': own, 'weight_decay': 0.0})
        return optim_wrapper
