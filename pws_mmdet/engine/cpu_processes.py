"""Distributed runs on a machine without a GPU."""

import torch
from mmengine.device import get_device
from mmengine.dist import is_distributed
from mmengine.model import is_model_wrapper
from mmengine.runner import Runner
from torch import nn

from ..utils.repository import shown_path


class CPUProcessesRunner(Runner):
    """A runner whose processes use gloo if there is no GPU.

    Raises:
        RuntimeError: If the launcher needs GPUs, and there is none.
    """

    def setup_env(self, env_cfg: dict) -> None:
        if self._is_on_cpus() and not is_distributed():
            if self.launcher != 'pytorch':
                raise RuntimeError(
                    f'The launcher {self.launcher!r} needs GPUs, and this machine has '
                    f'none. Use {shown_path("tools/dist_train.sh")} or dist_test.sh '
                    'beside it: their processes also run on CPUs.'
                )
            torch.distributed.init_process_group('gloo')
        super().setup_env(env_cfg)

    def wrap_model(self, model_wrapper_cfg: dict | None, model: nn.Module) -> nn.Module:
        if (
            model_wrapper_cfg is None
            and self._is_on_cpus()
            and not is_model_wrapper(model)
        ):
            # MMEngine's default with device_ids=None, because there is no GPU.
            model_wrapper_cfg = dict(
                type='MMDistributedDataParallel',
                device_ids=None,
                broadcast_buffers=False,
                find_unused_parameters=self.cfg.get('find_unused_parameters', False),
            )
        return super().wrap_model(model_wrapper_cfg, model)

    def _is_on_cpus(self) -> bool:
        return self.distributed and get_device() == 'cpu'
