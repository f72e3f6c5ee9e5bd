from mmengine.dist import master_only
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmengine.runner import Runner

from ...analysis.model_summary import summarize_model
from ...utils.config import find_image_size
from ...utils.log import inform, warn


@HOOKS.register_module(force=True)
class ModelSummaryHook(Hook):
    """Log what the model is made of, once, before the first step.

    ``summarize_model`` explains the numbers. If it fails, the training goes on.

    Args:
        macs: Also count multiply-adds, in one forward pass of a random image. Its size
            is that to which the config's test pipeline resizes.
    """

    priority = 'LOWEST'  # after hooks that change the model

    def __init__(self, macs: bool = True) -> None:
        self.macs = macs

    @master_only
    def before_train(self, runner: Runner) -> None:
        try:
            size = find_image_size(runner.cfg) if self.macs else None
            # The training does the same next. norm_eval takes effect in train().
            runner.model.train()
            composition = summarize_model(runner.model, size, runner.optim_wrapper)
            lines = ['The model is made of:', str(composition)]
            if self.macs and size is None:
                lines.append('MACs: the config has no Resize that tells a size')
            inform('\n'.join(lines))
        except Exception as e:  # A model may raise anything.
            warn(f'ModelSummaryHook could not describe the model: {e!r}')
