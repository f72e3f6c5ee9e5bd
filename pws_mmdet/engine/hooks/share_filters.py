from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmengine.runner import Runner

from ...layers import share_filters_of_heads
from ...utils.model import unwrap_model


@HOOKS.register_module(force=True)
class ShareFiltersHook(Hook):
    """Compute the filters of a head once for the feature maps of all levels.

    Outputs and gradients stay the same. See ``share_filters``.
    """

    priority = 'VERY_HIGH'  # before EMAHook copies the model

    def before_run(self, runner: Runner) -> None:
        share_filters_of_heads(unwrap_model(runner.model))
