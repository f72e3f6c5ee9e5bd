"""Say what the model of a config is made of, without training it.

Prints how many layers, parameters and multiply-adds (MACs) are those of PWS
convolutions, of plain ones, of layers that normalize, and so on; whether the model is
norm-free; its gammas; and which alphas the optimizer would decay.

  frozen      layers whose parameters are not trained
  MACs        of convolutions and products of matrices, each time that a layer is
              applied, in one forward pass of a random image: a multiplication
              and an addition count as one. Computing the filters of PWS
              convolutions is left out; it costs O(parameters).

Weights start at random, init_cfg is not carried out, and nothing is loaded: neither
weights nor data. With a second stage, as in Mask R-CNN, the MACs depend on how many
proposals these weights make.
"""

import argparse
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from mmengine.config import Config
from mmengine.logging import MMLogger
from mmengine.optim import OptimWrapper, OptimWrapperDict, build_optim_wrapper
from mmengine.runner import set_random_seed
from torch import nn

from pws_mmdet.analysis.model_summary import (
    Composition,
    find_image_size,
    summarize_model,
)
from pws_mmdet.utils.config import ConfigOptions, build_model, describe, read_config
from pws_mmdet.utils.files import write_whole


def summarize(
    config: str,
    cfg_options: Mapping | None = None,
    shape: Sequence[int] | None = None,
    macs: bool = True,
) -> Composition:
    """Say what the model of a config is made of.

    Args:
        config: Path of a config, or an installed one, as in 'mmdet::FOLDER/NAME.py'.
        cfg_options: Changes to it, as of MMDetection's programs.
        shape: Height and width of the image, by default what the config's test
            pipeline resizes to.
        macs: Count multiply-adds.

    Raises:
        ValueError: If the config cannot be read, or describes no model that can be
            built and trained, if it tells no size, or if the model does not take
            images of ``shape``.
    """
    cfg = read_config(config, cfg_options)
    size = (shape or find_image_size(cfg)) if macs else None
    if macs and size is None:
        raise ValueError(
            f'{config} has no Resize with a scale in its test pipeline: give --shape '
            'or --no-macs'
        )
    model, optimizer = build(config, cfg)
    composition = summarize_model(model, size, optimizer)
    if shape and macs and composition.other_macs is None:
        raise ValueError(composition.findings[-1])
    return composition


def build(
    config: str, cfg: Config
) -> tuple[nn.Module, OptimWrapper | OptimWrapperDict | None]:
    """Build a model, with random weights, and its optimizer.

    Raises:
        ValueError: If that fails.
    """
    set_random_seed(0)
    model = build_model(config, cfg).train()
    try:
        return model, build_optimizer(model, cfg)
    except Exception as e:  # whatever an optimizer raises
        raise ValueError(f'{config} cannot be built: {describe(e)}') from e


def build_optimizer(
    model: nn.Module, cfg: Config
) -> OptimWrapper | OptimWrapperDict | None:
    """The optimizer of a config, which may have none."""
    optim_cfg = cfg.get('optim_wrapper')
    if optim_cfg and 'optimizer' in optim_cfg:
        # Wrappers differ in their steps, and that of mixed precision needs a GPU.
        keys = ('constructor', 'optimizer', 'paramwise_cfg')
        optim_cfg = {key: optim_cfg[key] for key in keys if key in optim_cfg}
    return build_optim_wrapper(model, optim_cfg) if optim_cfg else None


def positive_integer(text: str) -> int:
    number = int(text)
    if number < 1:
        raise ValueError
    return number


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('config', help='path, or mmdet::FOLDER/NAME.py')
    parser.add_argument(
        '--cfg-options',
        nargs='+',
        action=ConfigOptions,
        metavar='KEY=VALUE',
        help='changes to the config',
    )
    parser.add_argument(
        '--shape',
        type=positive_integer,
        nargs=2,
        metavar=('H', 'W'),
        help='height and width of the image in pixels (default: the scale of '
        "Resize in the config's test pipeline)",
    )
    parser.add_argument(
        '--no-macs', action='store_true', help='make no forward pass: count no MACs'
    )
    parser.add_argument('--json', type=Path, metavar='FILE', help='also write JSON')
    args = parser.parse_args()
    MMLogger.get_instance('summarize', log_level='ERROR')
    try:
        composition = summarize(
            args.config, args.cfg_options, args.shape, not args.no_macs
        )
        if args.json is not None:
            report = dict(kinds=composition.kinds(), **asdict(composition))
            text = json.dumps(report, indent=2) + '\n'
            write_whole(args.json, lambda part: part.write_text(text, encoding='utf-8'))
    except (OSError, ValueError) as error:
        parser.error(str(error))
    print(composition)


if __name__ == '__main__':
    main()
