"""Find and load calibration images with the test pipeline of a config."""

import random
from pathlib import Path
from typing import Any

from mmengine.config import Config, ConfigDict
from mmengine.dataset import Compose, pseudo_collate
from mmengine.logging import print_log
from mmengine.registry import DATASETS

from ..utils.config import describe, type_name

SUFFIXES = ('.jpg', '.jpeg', '.png', '.bmp', '.ppm', '.tif', '.tiff', '.webp')


def find_images(source: str | Path, number: int, seed: int) -> list[str]:
    """Choose some images of a folder, or of the training set of a config, at random.

    Args:
        source: A folder, or a config (*.py).
        number: The number of images. If there are fewer, all are taken.
        seed: Seed of the choice.

    Returns:
        The paths of the images.

    Raises:
        FileNotFoundError: If there is no such folder or config.
        ValueError: If it has no images, or ``number`` is below 1.
    """
    path = Path(source).expanduser()
    if path.is_dir():
        paths = sorted(str(p) for p in path.rglob('*') if p.suffix.lower() in SUFFIXES)
    elif path.suffix == '.py':
        paths = paths_of_training(path)
    else:
        raise FileNotFoundError(f'calibrate: there is no folder or config {source}')
    if not paths or number < 1:
        raise ValueError(
            f'There are no calibration images: {len(paths)} in {source} '
            f'({", ".join(SUFFIXES)}), and num_images is {number}'
        )
    if len(paths) < number:
        print_log(f'{source} has {len(paths)} images only: all are taken')
        return paths
    return random.Random(seed).sample(paths, number)


def paths_of_training(config: Path) -> list[str]:
    """Return the paths of the images that a config trains on.

    Raises:
        ValueError: If the config or its training set cannot be read.
    """
    try:
        cfg = Config.fromfile(config)
        dataset = dict_at(cfg, 'train_dataloader', 'dataset')
        if dataset is None:
            raise ValueError('it has no train_dataloader with a dataset')
        with DATASETS.switch_scope_and_registry(cfg.get('default_scope')) as registry:
            dataset = registry.build(dataset)
        return [dataset.get_data_info(i)['img_path'] for i in range(len(dataset))]
    except Exception as e:  # a config or a dataset may raise anything
        raise ValueError(f'calibrate {config}: {describe(e)}') from e


def dict_at(cfg: Any, *keys: str) -> dict | None:
    """Return the dict that a config has below some keys, or None."""
    for key in keys:
        cfg = cfg.get(key) if isinstance(cfg, (Config, dict)) else None
    return cfg if isinstance(cfg, dict) else None


def load_images(cfg: ConfigDict, paths: list[str], batch_size: int) -> list[dict]:
    """Load images with the test pipeline of a config, in batches.

    Args:
        cfg: The config.
        paths: Paths of the images.
        batch_size: Images in a batch. The last batch may be smaller.

    Raises:
        ValueError: If an image cannot be read.
    """
    pipeline = Compose(
        [
            transform
            for transform in cfg.test_dataloader.dataset.pipeline
            if not type_name(transform).endswith('LoadAnnotations')
        ]
    )
    batches = []
    for i in range(0, len(paths), batch_size):
        images = []
        for path in paths[i : i + batch_size]:
            try:
                image = pipeline(dict(img_path=path, img_id=i))
            except Exception as e:
                raise ValueError(f'The image {path} cannot be read: {e}') from e
            images.append(image)
        batches.append(pseudo_collate(images))
    return batches
