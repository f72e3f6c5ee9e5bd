import inspect
import os.path as osp
from pathlib import Path
from typing import Any

import torch
from mmdet.evaluation import CocoMetric
from mmengine.device import get_device
from mmengine.dist import is_distributed, master_only
from mmengine.hooks import CheckpointHook, Hook
from mmengine.model import is_model_wrapper
from mmengine.registry import HOOKS, RUNNERS
from mmengine.runner import BaseLoop, Runner
from torch import nn

from ..arguments import check_names
from ..compat import INSTALL_PRETRAIN, DamagedCheckpointError
from ..convert.checkpoint import (
    check_finite,
    check_kind,
    meta_of,
    renamed_on_loading,
    warn_of_other_shapes,
    weights_of,
)
from ..files import write_whole
from ..layers import share_filters_of_heads
from ..layers.reparam_conv import ReparamConv2d
from .annotation_check import checked_annotations
from .checkpoint_hook import WholeCheckpointHook, find_checkpoints, is_on_disk
from .class_check import check_num_classes, check_same_classes
from .composition_hook import CompositionHook
from .data_check import check_data
from .dataset_check import check_dataset
from .divergence_hook import DivergenceHook
from .fuse_hook import FusePWSHook
from .truth_check import check_truth
from .utils import unwrap_model


@RUNNERS.register_module(force=True)
class PWSRunner(Runner):
    """MMEngine's runner with earlier errors, and processes without a GPU.

    * Missing pretrained weights stop a training before any data is read. A
      resumed training and a test do without them.
    * Missing files and folders of the data stop a training or a test before
      anything is read, broken annotations and missing pictures before the first
      step.
    * A training set without a single picture is an error.
    * A test runs on plain convolutions: see :class:`FusePWSHook`.
    * A training says at its start what the model is made of, and stops when it
      diverges: :class:`CompositionHook` and :class:`DivergenceHook`, unless the
      config has them.
    * Whenever a training is killed, a whole checkpoint is left, and ``--resume``
      finds it: :class:`WholeCheckpointHook`. If nothing is left to train, the
      validation that may have been cut off is made.
    * Heads that see the maps of several levels compute their filters once in a
      forward pass: :func:`share_filters`.
    * Distributed runs on a machine without a GPU use gloo.
    * The text of a config that a checkpoint carries is not executed on resuming.

    ``tools/train.py`` and ``tools/test.py`` put it in the place of
    ``mmengine.runner.Runner``; elsewhere ``runner_type='PWSRunner'`` selects it.
    """

    def __init__(self, *args, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        share_filters_of_heads(unwrap_model(self.model))

    def setup_env(self, env_cfg: dict) -> None:
        if self.distributed and not is_distributed() and get_device() == 'cpu':
            if self.launcher != 'pytorch':
                raise RuntimeError(
                    f'The launcher {self.launcher!r} needs GPUs, and none was found '
                    'here. tools/dist_train.sh and tools/dist_test.sh run as many '
                    'CPU processes.'
                )
            torch.distributed.init_process_group('gloo')
        super().setup_env(env_cfg)

    def wrap_model(self, model_wrapper_cfg: dict | None, model: nn.Module) -> nn.Module:
        on_cpu = self.distributed and get_device() == 'cpu'
        if model_wrapper_cfg is None and on_cpu and not is_model_wrapper(model):
            # MMEngine's default, but for the device
            model_wrapper_cfg = dict(
                type='MMDistributedDataParallel',
                device_ids=None,
                broadcast_buffers=False,
                find_unused_parameters=self.cfg.get('find_unused_parameters', False),
            )
        return super().wrap_model(model_wrapper_cfg, model)

    def train(self) -> nn.Module:
        self._check_pretrained()
        check_data(
            dict(
                train_dataloader=self._train_dataloader,
                val_dataloader=self._val_dataloader,
                val_evaluator=self._val_evaluator,
            )
        )
        for hook in (CompositionHook, DivergenceHook):
            if not any(isinstance(h, hook) for h in self.hooks):
                self.register_hook(hook())
        return super().train()

    def test(self) -> dict:
        check_data(
            dict(
                test_dataloader=self._test_dataloader,
                test_evaluator=self._test_evaluator,
            )
        )
        has_pws = any(isinstance(m, ReparamConv2d) for m in self.model.modules())
        if has_pws and not any(isinstance(h, FusePWSHook) for h in self.hooks):
            self.register_hook(FusePWSHook())
        return super().test()

    def _check_pretrained(self) -> None:
        resumes = self._resume and (self._load_from or find_checkpoints(self.work_dir))
        for name, module in self.model.named_modules():
            init_cfgs = getattr(module, 'init_cfg', None) or []
            if isinstance(init_cfgs, dict):
                init_cfgs = [init_cfgs]
            for init_cfg in init_cfgs:
                path = init_cfg.get('checkpoint')
                if not path or '://' in path or osp.isfile(osp.expanduser(path)):
                    continue
                if not resumes:
                    raise FileNotFoundError(self._describe_ways_on(name, path))
                # MMEngine would read it, only to overwrite the weights at once
                module.init_cfg = None

    def _describe_ways_on(self, name: str, path: str) -> str:
        config = getattr(self.cfg, 'filename', None) or 'CONFIG'
        option = 'model.' + name.removeprefix('module.')
        train = f'tools/dist_train.sh {config} 8 --cfg-options'
        optim_wrapper = self.cfg.get('optim_wrapper') or {}
        lr = (optim_wrapper.get('optimizer') or {}).get('lr')
        rate = f'optim_wrapper.optimizer.lr={lr / 10:g} ' if lr else ''
        return (
            f'The pretrained weights {path} of {option} do not exist.\n'
            'Ways on (8 is the number of GPUs):\n'
            '* Start from the weights of a ResNet-50 with BN, as '
            'configs/mask_rcnn_r50_fpn_pws_from_bn_1x.py does, and at a tenth of the '
            'learning rate:\n'
            f'    {train} {rate}{option}.init_cfg.type=PWSPretrained '
            f'{option}.init_cfg.checkpoint=torchvision://resnet50 '
            f'{option}.pre_activation=False {option}.stem_norm_cfg=None\n'
            f'* Name the file, if it lies elsewhere:\n'
            f'    {train} {option}.init_cfg.checkpoint=FILE\n'
            '* Train from scratch, with nothing frozen (and, for a result, for '
            'longer):\n'
            f'    {train} {option}.init_cfg=None {option}.frozen_stages=-1\n'
            '* Pretrain a norm-free ResNet-50 on ImageNet (in data/imagenet), with '
            f'mmpretrain ({INSTALL_PRETRAIN}):\n'
            '    tools/dist_train.sh configs/imagenet/resnet50_pws_in1k.py 8\n'
            '    python tools/model_converters/publish_backbone.py '
            f'work_dirs/resnet50_pws_in1k/epoch_100.pth {path}\n'
            f'    tools/dist_train.sh {config} 8'
        )

    def build_train_loop(self, loop: BaseLoop | dict) -> BaseLoop:
        loader = self._train_dataloader
        dataset = loader['dataset'] if isinstance(loader, dict) else {}
        try:
            with checked_annotations():
                loop = super().build_train_loop(loop)
            built = loop.dataloader.dataset
            is_empty = hasattr(built, '__len__') and len(built) == 0
        except ValueError as e:
            # how MMEngine fails to pack the records of an empty data set
            if 'need at least one array to concatenate' not in str(e):
                raise
            is_empty = True
        if is_empty:
            raise ValueError(
                'The training set is empty: no image is left of '
                f'{dataset.get("ann_file", dataset)} after '
                f'filter_cfg={dataset.get("filter_cfg")}. Has the file annotations, '
                'and of the classes that metainfo names '
                f'({dataset.get("metainfo", {}).get("classes")})?'
            )
        check_dataset(loop.dataloader.dataset, self.model)
        return loop

    def build_val_loop(self, loop: BaseLoop | dict) -> BaseLoop:
        with checked_annotations():
            return self._checked(super().build_val_loop(loop))

    def build_test_loop(self, loop: BaseLoop | dict) -> BaseLoop:
        with checked_annotations():
            return self._checked(super().build_test_loop(loop))

    def _checked(self, loop: BaseLoop) -> BaseLoop:
        dataset = loop.dataloader.dataset
        if isinstance(self._train_loop, BaseLoop):
            check_dataset(dataset, self.model)
            check_same_classes(self._train_loop.dataloader.dataset, dataset)
        else:
            check_dataset(dataset)
            # CocoMetric fails at labels of no class, after the whole test
            metrics = getattr(loop.evaluator, 'metrics', ())
            is_coco = any(isinstance(metric, CocoMetric) for metric in metrics)
            check_num_classes(dataset, self.model, ['many'] if is_coco else [])
        check_truth(loop.evaluator)
        return loop

    def register_hook(self, hook: Hook | dict, *args, **kwargs) -> None:
        if isinstance(hook, dict):
            cls = hook.get('type')
            cls = HOOKS.get(cls) if isinstance(cls, str) else cls
            if cls is CheckpointHook:
                cls = WholeCheckpointHook
                hook = {**hook, 'type': cls}
            if inspect.isclass(cls):
                check_names(cls, set(hook) - {'type', 'priority', '_scope_'})
        super().register_hook(hook, *args, **kwargs)

    @master_only
    def save_checkpoint(
        self,
        out_dir: str | Path,
        filename: str,
        file_client_args: dict | None = None,
        *args,
        backend_args: dict | None = None,
        **kwargs,
    ) -> None:
        def save(path: Path) -> None:
            save_in(str(path.parent), path.name, file_client_args, *args, **kwargs)

        kwargs['backend_args'] = backend_args
        save_in = super().save_checkpoint
        if is_on_disk(str(out_dir), file_client_args, backend_args):
            write_whole(Path(out_dir, filename), save)
        else:
            save_in(str(out_dir), filename, file_client_args, *args, **kwargs)

    def load_or_resume(self) -> None:
        if self._resume and self._load_from is None and not self._has_loaded:
            checkpoints = find_checkpoints(self.work_dir)
            if checkpoints:
                self._load_from = str(checkpoints[0])
                self.logger.info(f'Resuming from the latest, {self._load_from}')
        super().load_or_resume()

    def load_checkpoint(self, filename: str, *args, **kwargs) -> dict:
        try:
            checkpoint = super().load_checkpoint(filename, *args, **kwargs)
        except DamagedCheckpointError as e:
            others = find_checkpoints(Path(filename).parent)
            others = [path for path in others if not path.samefile(filename)]
            if not others:
                raise
            raise DamagedCheckpointError(
                f'{e}\nAnother one beside it is {others[0]}: --resume {others[0]}'
            ) from None
        except ValueError as e:
            raise ValueError(f'{filename} cannot be loaded: {e}') from None
        # Resuming executes it to look for gpu_ids, which nothing writes any more.
        if isinstance(checkpoint.get('meta'), dict):
            checkpoint['meta'].pop('config', None)
        return checkpoint

    def call_hook(self, fn_name: str, **kwargs) -> None:
        # the last moment before the weights are in the model
        if fn_name == 'after_load_checkpoint':
            self._check_checkpoint(kwargs['checkpoint'])
        elif fn_name == 'before_train':
            self._start = self.iter
        elif fn_name == 'after_train' and self.iter == self._start and self._val_loop:
            self.logger.info('Nothing is left to train: validating')
            self.val_loop.run()
        super().call_hook(fn_name, **kwargs)

    def _check_checkpoint(self, checkpoint: Any) -> None:
        weights = renamed_on_loading(self.model, weights_of(checkpoint))
        check_finite(weights, 'it', self.model)
        own = self.model.state_dict()
        names = {name.removeprefix('module.') for name in own}
        if not names & set(weights):
            raise ValueError(
                f'it is of another network: it has {next(iter(weights))}, and none of '
                f'the names of this one, such as {min(names)}'
            )
        check_kind(self.model, weights)
        warn_of_other_shapes(self.model, weights)
        state = meta_of(checkpoint)
        if self._resume and not (
            isinstance(state.get('epoch'), int)
            and isinstance(state.get('iter'), int)
            and isinstance(checkpoint.get('message_hub'), dict)
        ):
            raise ValueError(
                'it holds no state of a training that can be resumed. Without '
                '--resume, --cfg-options load_from=FILE starts from its weights'
            )
