from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from mmdet.evaluation import CocoMetric
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmengine.runner import BaseLoop, Runner

from ...checkpoint.read import classes_of
from ..checks.annotations import checked_annotations
from ..checks.classes import (
    check_num_classes,
    check_same_classes,
    check_trained_classes,
)
from ..checks.data_paths import check_data
from ..checks.datasets import check_dataset
from ..checks.ground_truth import check_truth


@HOOKS.register_module(force=True)
class DataCheckHook(Hook):
    """Check the data before anything is computed.

    * Missing files and folders stop a training or a test before data is read.
    * Broken annotations, missing images and an empty training set stop it before the
      first step.
    * A checkpoint that was trained with the classes in another order stops a test.

    ``PWSRunner`` calls ``before_build``, ``building`` and ``after_build``, because
    MMEngine calls no hooks while it builds loops. In other runners, only the classes
    of checkpoints are checked.
    """

    def before_build(self, runner: Runner, cfgs: Mapping[str, Any]) -> None:
        """Check the files and folders that the configs of the data name.

        Args:
            runner: The runner.
            cfgs: The configs of data loaders and evaluators, by their names.

        Raises:
            FileNotFoundError: If files or folders are missing.
        """
        check_data(cfgs)

    @contextmanager
    def building(self, train_loader: Any = None) -> Iterator[None]:
        """Check the annotations that are read in this context.

        Args:
            train_loader: The config of the data loader, if it is that of the training.

        Raises:
            ValueError: If they cannot be read, or if the training set is empty.
        """
        try:
            with checked_annotations():
                yield
        except ValueError as e:
            # MMEngine fails with this error to pack the records of an empty dataset.
            empty = 'need at least one array to concatenate' in str(e)
            if train_loader is None or not empty:
                raise
            raise ValueError(_describe_empty(train_loader)) from None

    def after_build(
        self, runner: Runner, loop: BaseLoop, train_loader: Any = None
    ) -> None:
        """Check the datasets and the ground truth of a loop that has been built.

        Args:
            runner: The runner.
            loop: The loop.
            train_loader: The config of the data loader, if the loop is that of the
                training.

        Raises:
            FileNotFoundError: If images are missing or empty.
            ValueError: If the training set is empty, or annotations, classes and
                heads do not fit together.
        """
        dataset = loop.dataloader.dataset
        if train_loader is not None:
            if hasattr(dataset, '__len__') and len(dataset) == 0:
                raise ValueError(_describe_empty(train_loader))
            check_dataset(dataset, runner.model)
            return
        if isinstance(runner._train_loop, BaseLoop):
            check_dataset(dataset, runner.model)
            check_same_classes(runner.train_dataloader.dataset, dataset)
        else:
            check_dataset(dataset)
            # After the whole test, CocoMetric would fail at labels without a class.
            metrics = getattr(loop.evaluator, 'metrics', ())
            is_coco = any(isinstance(metric, CocoMetric) for metric in metrics)
            check_num_classes(dataset, runner.model, ['many'] if is_coco else [])
        check_truth(loop.evaluator)

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Check that a checkpoint has the labels of the dataset it is tested on.

        Raises:
            ValueError: If it has the same classes in another order.
        """
        loops = [runner._val_loop, runner._test_loop]
        if isinstance(runner._train_loop, BaseLoop):
            # A training may start from weights for other classes, because the head
            # learns the new ones. A resumed training needs the same classes.
            loops = [runner._train_loop] if runner._resume else []
        for loop in loops:
            if isinstance(loop, BaseLoop):
                check_trained_classes(loop.dataloader.dataset, classes_of(checkpoint))


def _describe_empty(loader: Any) -> str:
    dataset = loader['dataset'] if isinstance(loader, dict) else {}
    classes = dataset.get('metainfo', {}).get('classes')
    return (
        'The training set is empty: no image is left of '
        f'{dataset.get("ann_file", dataset)} after '
        f'filter_cfg={dataset.get("filter_cfg")}. Check that the file has annotations, '
        f'and that they are of the classes in metainfo ({classes}).'
    )
