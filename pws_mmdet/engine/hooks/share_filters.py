from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmengine.runner import Runner

from ...layers import share_filters_of_heads
from ...utils.model import unwrap_model


@HOOKS.register_module(force=True)
class ShareFiltersHook(Hook):
    """Let heads that see the maps of several levels compute their filters once.

    See :func:`share_filters`. The outputs and gradients stay the same.
    """

    priority = 'VERY_HIGH'  # before EMAHook copies the model

    def before_run(self, runner: Runner) -> None:
        share_filters_of_heads(unwrap_model(runner.model))
