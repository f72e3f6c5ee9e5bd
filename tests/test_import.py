"""The public names, and what importing the package changes."""

import sys

import pytest
import torch
from mmengine.hooks import CheckpointHook
from mmengine.registry import HOOKS

import pws_mmdet
from pws_mmdet.engine import AtomicCheckpointHook, ModelSummaryHook

# Run in a new process. A child process imports pws_mmdet and lists the modules of the
# host libraries that this needs. The parent imports them, then pws_mmdet, and prints
# what this second import changed. Both share the slow import of torch.
COMPARE = """
import importlib, os, sys, types, warnings
warnings.simplefilter('ignore')
import torch
import mmengine.runner

HOSTS = ('torch', 'mmcv', 'mmengine', 'mmdet')
reader, writer = os.pipe()
if os.fork() == 0:
    import pws_mmdet
    with os.fdopen(writer, 'w') as file:
        print(*(n for n in sys.modules if n.split('.')[0] in HOSTS), file=file)
    os._exit(0)
os.close(writer)
with os.fdopen(reader) as file:
    names = file.read().split()
assert any(n.startswith('mmdet.') for n in names), names
for name in names:
    try:
        importlib.import_module(name)
    except Exception:
        pass  # some modules are created by code, such as torch.ops
from mmengine.registry import Registry
from torch.optim import optimizer

# Registries of loaders, and of functions that fx does not trace
REGISTRIES = {
    'mmengine.runner.checkpoint.CheckpointLoader._schemes',
    'torch.fx._symbolic_trace._wrapped_fns_to_patch',
}
try:
    import torchvision
except ImportError:
    pass
except RuntimeError:
    # It was compiled for another torch. MMDetection imports it where mmpretrain is
    # installed, so pws_mmdet declares the operators that it describes.
    REGISTRIES |= {
        'torch._jit_internal._overloaded_method_class_fileno',
        'torch._jit_internal._overloaded_methods',
        'torch.library._defs',
        'torch.library._impls',
        'torch.library._keep_alive',
        'torch.ops._dir',
    }


def shallow(value):
    if type(value) in (dict, list, set):
        return value, (list(value.items()) if type(value) is dict else list(value))
    return value, None


def attributes():
    found = {}
    for module_name, module in list(sys.modules.items()):
        if module_name.split('.')[0] not in HOSTS or not hasattr(module, '__dict__'):
            continue
        for name, value in list(vars(module).items()):
            found[f'{module_name}.{name}'] = shallow(value)
            if isinstance(value, type) and value.__module__ == module_name:
                for key, member in list(vars(value).items()):
                    found[f'{module_name}.{name}.{key}'] = shallow(member)
    get = getattr(torch.serialization, 'get_safe_globals', list)
    found['safe globals'] = None, list(get())
    for name in ('_global_optimizer_pre_hooks', '_global_optimizer_post_hooks'):
        found[name] = None, list(getattr(optimizer, name).items())
    return found


def differs(key, old, new):
    if key in REGISTRIES:
        return False
    if isinstance(new[0], types.ModuleType):
        return old[0] is not None and old[0] is not new[0]
    if old[0] is not new[0]:
        return True
    try:
        return len(old[1] or ()) != len(new[1] or ()) or any(
            a is not b and a != b for a, b in zip(old[1] or (), new[1] or ())
        )
    except Exception:  # the values cannot be compared
        return False


before = attributes()
import pws_mmdet
after = attributes()
nothing = None, None
for key in sorted({*before, *after}):
    if differs(key, before.get(key, nothing), after.get(key, nothing)):
        print('changed:', key)
"""


@pytest.mark.slow
def test_the_import_changes_nothing_in_the_host_libraries(run):
    process = run(sys.executable, '-W', 'ignore', '-c', COMPARE)
    # The forks print a line of their own.
    assert 'changed:' not in process.stdout, process.stdout


def test_the_public_names_are_few_and_sorted_and_exist():
    assert pws_mmdet.__all__ == sorted(pws_mmdet.__all__)
    assert len(pws_mmdet.__all__) <= 14
    assert all(hasattr(pws_mmdet, name) for name in pws_mmdet.__all__)
    with pytest.raises(AttributeError, match="no attribute 'convert_to_bn'"):
        pws_mmdet.convert_to_bn  # noqa: B018


OLD_NAMES = [
    ('WholeCheckpointHook', AtomicCheckpointHook, dict(interval=2, max_keep_ckpts=1)),
    ('CompositionHook', ModelSummaryHook, {}),
]


@pytest.mark.parametrize('old, new, options', OLD_NAMES)
def test_old_names_of_hooks_work_and_warn(old, new, options):
    message = f'{old} is now {new.__name__}'
    with pytest.warns(DeprecationWarning, match=message) as caught:
        hook = HOOKS.build(dict(type=old, **options))
    assert isinstance(hook, new) and len(caught) == 1
    assert all(getattr(hook, name) == value for name, value in options.items())
    with pytest.warns(DeprecationWarning, match=message) as caught:
        assert getattr(pws_mmdet, old) is new
    assert caught[0].filename == __file__


def test_an_old_name_in_a_config_takes_the_place_of_the_default(make_runner):
    custom_hooks = [dict(type='CompositionHook')]
    default_hooks = dict(checkpoint=dict(type='WholeCheckpointHook', interval=3))
    with pytest.warns(DeprecationWarning):
        runner = make_runner(
            torch.nn.Linear(1, 1),
            [0],
            runner_type=pws_mmdet.PWSRunner,
            custom_hooks=custom_hooks,
            default_hooks=default_hooks,
        )
    summaries = [h for h in runner.hooks if isinstance(h, ModelSummaryHook)]
    checkpoints = [h for h in runner.hooks if isinstance(h, CheckpointHook)]
    assert [type(h).__name__ for h in summaries] == ['CompositionHook']
    assert [h.interval for h in checkpoints] == [3]
    with pytest.warns(DeprecationWarning), pytest.raises(TypeError, match='intervall'):
        HOOKS.build(dict(type='WholeCheckpointHook', intervall=3))
