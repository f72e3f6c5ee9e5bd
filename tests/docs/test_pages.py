"""The pages agree with what they repeat."""

import re

import pytest
from conftest import ROOT

DOCS = ROOT / 'docs'


def rows_of(text):
    lines = [line for line in text.splitlines() if line.startswith('|')]
    return [[cell.strip() for cell in line.strip('|').split('|')] for line in lines]


def test_gamma_shows_the_sweep_of_the_results():
    text = (DOCS / 'gamma.md').read_text()
    page, title, table = re.search(
        r'<!-- from (\S+): (.*) -->\n\n((?:\|.*\n)+)', text
    ).groups()
    source = (DOCS / page).read_text().split(f'**{title}**')[1].split('\n* ')[0]
    (heading, _, *rows), (columns, _, *known) = rows_of(table), rows_of(source)
    chosen = [columns.index(name) for name in heading]
    assert rows == [[row[i] for i in chosen] for row in known]


def test_the_types_of_the_configs_page_are_registered():
    from mmengine.registry import (
        HOOKS,
        METRICS,
        MODELS,
        OPTIM_WRAPPER_CONSTRUCTORS,
        OPTIM_WRAPPERS,
        RUNNERS,
        WEIGHT_INITIALIZERS,
    )

    registries = (MODELS, HOOKS, METRICS, OPTIM_WRAPPERS, RUNNERS)
    registries += (OPTIM_WRAPPER_CONSTRUCTORS, WEIGHT_INITIALIZERS)
    text = (DOCS / 'configs.md').read_text()
    section = text.split('## Registered types')[1].split('\n## ')[0]
    names = [re.findall(r'`(\w+)`', row[0]) for row in rows_of(section)[2:]]
    names = [name for row in names for name in row]
    assert len(names) > 20
    known = {key for registry in registries for key in registry.module_dict}
    assert {*names} <= known


def test_the_default_hooks_of_the_configs_page_are_those_of_the_runner():
    from pws_mmdet.engine.default_hooks import DEFAULT_HOOKS

    text = (DOCS / 'configs.md').read_text()
    section = text.split('## What PWSRunner does')[1].split('\n## ')[0]
    names = {row[0].strip('`') for row in rows_of(section)[2:]}
    assert names == {*DEFAULT_HOOKS, 'checkpoint'}


def on_one_line(text):
    return ' '.join(text.split())


@pytest.fixture(scope='module')
def sources():
    """The code of the package, with messages on one line."""
    paths = sorted((ROOT / 'pws_mmdet').rglob('*.py'))
    text = on_one_line('\n'.join(path.read_text() for path in paths))
    return re.sub(r"""['"] f?['"]""", '', text)


@pytest.mark.parametrize(
    'part',
    [
        'compiled operators that detectors need',
        'there is no layer',
        '; did you mean',
        'NOT norm-free: ',
        'Plain convolutions in a backbone with PWS: ',
        'its deformable convolutions exclude PWS convolutions',
        '=None switches off no default hook. The default hooks are',
        'these are the weights of a network with BN, and this one has PWS in',
        'checkpoint=...) converts them, and so does pws-convert',
        'these are the weights of a PWS checkpoint, and this network has other',
        'Use the config of their training, or make them plain with pws-fuse',
        ' keep the mean that they had with BN. Set conv_cfg=',
        ', does not exist. ',
        'This command trains without it:',
        'Unpickling such things can run any code. If you trust the file, load it with',
        'Training diverged at iteration ',
        ' is the first to explode: its variance is ',
        '; the paper has gamma=1e-3 for 1e-2 and 1e-5 for 1e-3. Try ',
        'alphas towards 0, unlike in the paper: ',
        ' needs GPUs, and this machine has none. Use ',
    ],
)
def test_troubleshooting_quotes_messages_as_they_are_printed(part, sources):
    assert part in on_one_line((DOCS / 'troubleshooting.md').read_text())
    assert part in sources
