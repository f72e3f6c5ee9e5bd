import logging

from mmengine.dist import master_only
from mmengine.hooks import Hook
from mmengine.logging import print_log
from mmengine.registry import HOOKS
from mmengine.runner import Runner

from ...analysis.model_summary import summarize_model
from ...utils.config import find_image_size


@HOOKS.register_module(force=True)
class ModelSummaryHook(Hook):
    """Log what the model is made of, once, before the first step.

    See :func:`summarize_model`. Nothing that fails here stops the training.

    Args:
        macs: Also count multiply-adds, in one forward pass of a random image of the
            size that the config's test pipeline makes.
    """

    priority = 'LOWEST'  # after hooks that change the model

    def __init__(self, macs: bool = True) -> None:
        self.macs = macs

    @master_only
    def before_train(self, runner: Runner) -> None:
        try:
            size = find_image_size(runner.cfg) if self.macs else None
            # as the training does next; norm_eval takes effect in it
            runner.model.train()
            composition = summarize_model(runner.model, size, runner.optim_wrapper)
            lines = ['The model is made of:', str(composition)]
            if self.macs and size is None:
                lines.append('MACs: the config has no Resize that tells a size')
            print_log('\n'.join(lines), logger='current')
        except Exception as e:  # a model may raise anything
            print_log(
                f'ModelSummaryHook could not describe the model: {e!r}',
                logger='current',
                level=logging.WARNING,
            )
