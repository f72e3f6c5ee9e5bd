"""Write the norm-free variant of a config of MMDetection's.

All parts of the model that take a conv_cfg get PWS convolutions and lose their norm
layers. The other parts stay. The program names them, and the layers that still
normalize. OUT inherits from CONFIG and holds only what differs, so it is trained and
tested like any other config.
"""

import argparse
from collections import Counter

from mmengine.logging import MMLogger

from pws_mmdet.analysis import summarize_model
from pws_mmdet.analysis.layer_kinds import NORM
from pws_mmdet.convert import make_norm_free
from pws_mmdet.convert.norm_free_config import NormFreeConfig


def report(made: NormFreeConfig) -> str:
    composition = summarize_model(made.model)
    lines = [str(composition)]
    if made.notes:
        lines += ['Note:', *(f'    {note}' for note in made.notes)]
    norms = [layer for layer in composition.layers if layer.kind == NORM]
    found = Counter(f'{layer.type} in {layer.name.split(".")[0]}' for layer in norms)
    where = ', '.join(f'{count} {kind}' for kind, count in found.items())
    state = f'{len(norms)} layers still normalize: {where}' if norms else 'norm-free'
    return '\n'.join([*lines, f'written: {made.path}, {state}'])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('config', help='path, or mmdet::FOLDER/NAME.py')
    parser.add_argument('out', help='the config to write, such as configs/x_pws.py')
    args = parser.parse_args()
    MMLogger.get_instance('make_norm_free', log_level='ERROR')
    try:
        made = make_norm_free(args.config, args.out)
    except (OSError, ValueError) as error:
        parser.error(str(error))
    print(report(made))


if __name__ == '__main__':
    main()
