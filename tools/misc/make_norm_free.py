"""Write the norm-free variant of a config of MMDetection's.

Every part of the model that takes a conv_cfg gets PWS convolutions and loses its norm
layers. The rest stays, and is named, and so are the layers that still normalize. OUT
inherits from CONFIG and says what differs, so that it is trained and tested like any
other.
"""

import argparse
import os
from collections import Counter
from pathlib import Path

from mmengine.config import Config
from mmengine.logging import MMLogger
from mmengine.registry import MODELS, init_default_scope

from pws_mmdet.analysis import summarize_model
from pws_mmdet.analysis.layer_kinds import NORM, PWS
from pws_mmdet.convert.norm_free_config import changes_of, norm_free_model
from pws_mmdet.utils.config import describe as describe_error
from pws_mmdet.utils.config import drop_pretrained, read_config
from pws_mmdet.utils.files import check_new_path, write_whole

CONV_CFG = dict(type='PWS', gamma=1e-4)  # the paper's for ResNet
HEAD_CONV_CFG = dict(type='PWS', gamma=0.1, relative_gamma=True)  # its authors'
HOOKS = [dict(type='PWSAlphaInitHook')]
CLIP_GRAD = dict(max_norm=10, norm_type=2)  # PWSAlphaInitHook says why
HEAD = (
    "# The norm-free variant. gamma is the paper's for ResNet in the backbone,\n"
    "# and that of its authors' code elsewhere. Gradients are clipped because no norm\n"
    '# layer keeps the steps small.\n'
)


def pwsify(config: str, out: str) -> None:
    """Write the config, and print what its model is made of.

    Raises:
        FileExistsError: If OUT exists.
        ValueError: If the config cannot be read, describes no model, or takes no
            PWS convolutions, if the model that comes out cannot be built, or if
            the new config could not be read.
    """
    out_path = check_new_path(out, '.py')
    base = config
    if '::' not in config:
        base = os.path.relpath(Path(config).expanduser(), out_path.absolute().parent)
    cfg = read_config(config)
    init_default_scope(cfg.get('default_scope') or 'mmdet')
    try:
        model, notes = norm_free_model(cfg.model, CONV_CFG, HEAD_CONV_CFG)
        composition = summarize_model(MODELS.build(drop_pretrained(model)))
    except Exception as e:  # whatever a model raises that does not take them
        raise ValueError(
            f'{config} has no norm-free variant: building it failed with '
            f'{type(e).__name__}: {e}'
        ) from e
    if not any(layer.kind == PWS for layer in composition.layers):
        raise ValueError(
            f'{config}: no part of the model takes PWS convolutions.'
            + ''.join(f' {line}.' for line in notes)
        )
    text = describe(cfg, model)
    absolute = base if '::' in base else str(Path(config).expanduser().absolute())
    try:
        Config.fromstring(f'_base_ = {absolute!r}\n{text}', '.py')
    except Exception as e:  # as of read_config
        raise ValueError(
            f'{config} has no norm-free variant: a config that inherits from it and '
            f'says what differs cannot be read: {describe_error(e)}'
        ) from e
    text = f'{HEAD}_base_ = {base!r}\n\n{text}'
    write_whole(out_path, lambda part: part.write_text(text))
    print(composition)
    if notes:
        print('Note:', *notes, sep='\n    ')
    norms = [layer for layer in composition.layers if layer.kind == NORM]
    found = Counter(f'{layer.type} in {layer.name.split(".")[0]}' for layer in norms)
    where = ', '.join(f'{count} {kind}' for kind, count in found.items())
    print(
        f'written: {out}, '
        + (f'{len(norms)} layers still normalize: {where}' if norms else 'norm-free')
    )


def describe(cfg: Config, model: dict) -> str:
    """What the new config says besides its base."""
    imports = cfg.get('custom_imports', {}).get('imports', [])
    imports = [imports] if isinstance(imports, str) else list(imports)
    old = cfg.get('optim_wrapper')
    old = old if isinstance(old, dict) else {}
    # A constructor of its own stays. The model summary says what it does to alpha.
    new = {'constructor': 'PWSOptimWrapperConstructor', **old}
    entries = dict(
        custom_imports=dict(
            imports=list(dict.fromkeys([*imports, 'pws_mmdet'])),
            allow_failed_imports=False,
        ),
        runner_type='PWSRunner',
        model=changes_of(cfg.model, model),
        optim_wrapper=changes_of(
            old, {**new, 'clip_grad': old.get('clip_grad') or dict(CLIP_GRAD)}
        ),
        custom_hooks=[*cfg.get('custom_hooks', []), *HOOKS],
    )
    return Config(entries).pretty_text


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('config', help='path, or mmdet::FOLDER/NAME.py')
    parser.add_argument('out', help='the config to write, such as configs/x_pws.py')
    args = parser.parse_args()
    MMLogger.get_instance('make_norm_free', log_level='ERROR')
    try:
        pwsify(args.config, args.out)
    except (OSError, ValueError) as error:
        parser.error(str(error))


if __name__ == '__main__':
    main()
