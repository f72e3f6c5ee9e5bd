"""Say what the model of a config is made of, without training it.

Prints the number of layers, parameters and multiply-adds (MACs) of each kind of layer:
PWS convolutions, plain ones, layers that normalize, and others. It also tells whether
the model is norm-free, its gammas, and which alphas the optimizer would decay.

  frozen      layers whose parameters are not trained
  MACs        multiply-adds of convolutions and matrix products in one forward pass
              of a random image, each time that a layer is called. A multiplication
              and an addition count as one. The computation of PWS filters does not
              count; it costs O(parameters).

Weights are random. No checkpoint and no data are read, and init_cfg is ignored. In a
detector with two stages, such as Mask R-CNN, the MACs depend on the number of proposals
that the random weights produce.
"""

import argparse
import json
from dataclasses import asdict
from pathlib import Path

from mmengine.logging import MMLogger

from pws_mmdet.analysis import summarize_config
from pws_mmdet.utils.arguments import positive
from pws_mmdet.utils.config import ConfigOptions
from pws_mmdet.utils.files import write_whole


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
        type=positive(int),
        nargs=2,
        metavar=('H', 'W'),
        help='height and width of the image in pixels (default: the scale of '
        "Resize in the config's test pipeline)",
    )
    parser.add_argument(
        '--no-macs', action='store_true', help='count no MACs: make no forward pass'
    )
    parser.add_argument('--json', type=Path, metavar='FILE', help='also write JSON')
    args = parser.parse_args()
    MMLogger.get_instance('summarize', log_level='ERROR')
    try:
        composition = summarize_config(
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
