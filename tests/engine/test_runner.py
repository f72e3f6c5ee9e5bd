import functools
from unittest import mock

import pytest
import torch
from small_training import Data, Net, small_runner
from torch import nn

from pws_mmdet import PWSConv2d
from pws_mmdet.engine import DivergenceHook


@pytest.fixture
def runner(make_runner):
    return functools.partial(small_runner, make_runner)


def test_a_training_has_the_default_hooks_once(runner):
    trainer = runner(Net(), custom_hooks=[dict(type='DivergenceHook', interval=7)])
    trainer.train()
    hooks = {type(hook).__name__: hook for hook in trainer.hooks}
    assert 'ModelSummaryHook' in hooks and hooks['DivergenceHook'].interval == 7
    assert len(hooks) == len(trainer.hooks)


HOOKS = dict(
    checkpoint='AtomicCheckpointHook',
    data_check='DataCheckHook',
    divergence='DivergenceHook',
    fuse='FusePWSHook',
    model_summary='ModelSummaryHook',
    resumed_validation='ResumedValidationHook',
    share_filters='ShareFiltersHook',
    weight_check='WeightCheckHook',
)


def types(trainer):
    return [type(hook).__name__ for hook in trainer.hooks]


@pytest.mark.parametrize('name', HOOKS)
def test_each_behaviour_is_a_default_hook(runner, name):
    """A config switches it off, or gives it arguments, by its name."""
    assert set(HOOKS.values()) <= set(types(runner(Net())))
    trainer = runner(Net(), default_hooks={name: None})
    assert set(HOOKS.values()) - set(types(trainer)) == {HOOKS[name]}
    trainer.train()
    cfg = {name: dict(type=HOOKS[name], priority=77)}
    (hook,) = (
        hook
        for hook in runner(Net(), default_hooks=cfg).hooks
        if type(hook).__name__ == HOOKS[name]
    )
    assert hook.priority == 77


def test_other_hooks_of_a_config_can_be_switched_off(runner, messages):
    """``visualization`` is in MMDetection's configs, and no default of MMEngine's."""
    trainer = runner(Net(), default_hooks=dict(visualization=None, timer=None))
    assert 'IterTimerHook' not in types(trainer)
    (text,) = messages
    assert 'default_hooks.visualization=None switches off no default hook' in text
    assert 'divergence' in text and 'timer' in text


def test_a_hook_in_the_config_replaces_the_default(runner):
    for options in (
        dict(default_hooks=dict(divergence=dict(interval=7))),
        dict(default_hooks=dict(mine=dict(type='DivergenceHook', interval=7))),
        dict(custom_hooks=[dict(type='DivergenceHook', interval=7)]),
        dict(custom_hooks=[DivergenceHook(interval=7)]),
    ):
        trainer = runner(Net(), **options)
        hooks = [h for h in trainer.hooks if isinstance(h, DivergenceHook)]
        assert [hook.interval for hook in hooks] == [7]
    trainer.register_hook(
        DivergenceHook(interval=8)
    )  # A second hook of a type can be added.
    assert types(trainer).count('DivergenceHook') == 2
    trainer = runner(Net())
    trainer.register_hook(DivergenceHook(interval=8))
    assert types(trainer).count('DivergenceHook') == 1


def test_the_check_of_data_can_be_switched_off(runner):
    loader = dict(dataset=dict(type=Data, length=0))
    with pytest.raises(ValueError, match='training set is empty'):
        runner(Net(), loader=loader).train()
    off = dict(data_check=None)
    with pytest.raises(Exception) as error:  # noqa: PT011 as MMEngine says it
        runner(Net(), loader=loader, default_hooks=off).train()
    assert 'training set is empty' not in str(error.value)


def test_heads_of_several_levels_share_their_filters(runner):
    class Twice(nn.Sequential):
        def forward(self, x):
            return super().forward(x), super().forward(x)

    class Head(Twice):
        forward_single = None

    model = Net()
    model.head, model.other = Head(PWSConv2d(2, 2, 3)), Twice(PWSConv2d(2, 2, 3))
    for expected, share in (([2, 2], None), ([1, 2], dict(type='ShareFiltersHook'))):
        runner(model, default_hooks=dict(share_filters=share)).train()
        counts = []
        for twice in (model.head, model.other):
            computed = mock.Mock(wraps=twice[0].effective_weight)
            twice[0].effective_weight = computed
            twice(torch.ones(1, 2, 4, 4))
            counts.append(computed.call_count)
            del twice[0].effective_weight
        assert counts == expected


def test_an_empty_training_set_is_an_error(runner):
    annotations = dict(ann_file='train.json', metainfo=dict(classes=('cat', 'dog')))
    loader = dict(dataset=dict(type=Data, length=0, **annotations))
    with pytest.raises(ValueError, match=r"empty.*train\.json.*\('cat', 'dog'\)"):
        runner(Net(), loader=loader).train()


def test_config_text_in_a_checkpoint_is_not_executed(runner, tmp_path):
    runner(Net()).train()
    path = tmp_path / 'work_dir' / 'epoch_1.pth'
    checkpoint = torch.load(path, weights_only=False)
    witness = tmp_path / 'executed'
    checkpoint['meta']['config'] = f'open({str(witness)!r}, "w").close()'
    torch.save(checkpoint, path)
    resumed = runner(Net(), resume=True, epochs=2)
    resumed.train()
    assert resumed.iter == 2
    assert not witness.exists()


def test_an_unknown_option_of_a_hook_is_named(runner):
    message = "DivergenceHook has no argument 'intervall'; it has interval"
    with pytest.raises(TypeError, match=message):
        runner(Net(), custom_hooks=[dict(type='DivergenceHook', intervall=7)])
    checkpoint = dict(type='CheckpointHook', max_kep_ckpts=1, save_param_scheduler=True)
    message = "CheckpointHook has no argument 'max_kep_ckpts'; it has interval, .*save"
    with pytest.raises(TypeError, match=message):
        runner(Net(), default_hooks=dict(checkpoint=checkpoint))
    del checkpoint['max_kep_ckpts']
    runner(Net(), default_hooks=dict(checkpoint=checkpoint)).train()


class TaggedHook(DivergenceHook):
    def __init__(self, **kwargs):
        self.tag = kwargs.pop('tag', None)
        super().__init__(**kwargs)


def test_a_hook_may_take_a_keyword_out_of_its_kwargs(runner):
    hook = dict(type=TaggedHook, tag='mine', interval=7)
    hooks = runner(Net(), custom_hooks=[hook]).hooks
    (hook,) = (h for h in hooks if isinstance(h, TaggedHook))
    assert (hook.tag, hook.interval) == ('mine', 7)
    with pytest.raises(TypeError, match='intervall'):  # as Python says it
        runner(Net(), custom_hooks=[dict(type=TaggedHook, intervall=7)])


def test_other_launchers_than_pytorch_need_a_gpu(runner, monkeypatch):
    if torch.cuda.is_available():
        pytest.skip('there is a GPU')
    with pytest.raises(RuntimeError, match="'slurm' needs GPUs.*dist_train.sh"):
        runner(Net(), launcher='slurm')
