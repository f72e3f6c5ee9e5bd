from unittest import mock

import pytest
import torch
from mmcv.cnn import ConvModule, build_conv_layer
from mmdet.models import SemiBaseDetector
from mmengine.config import Config
from mmengine.evaluator import BaseMetric
from mmengine.model import BaseModel, BaseModule, BaseTTAModel
from mmengine.registry import WEIGHT_INITIALIZERS
from torch import nn
from torch.utils.data import Dataset

from pws_mmdet import PWSConv2d, PWSRunner
from pws_mmdet.engine import DivergenceHook


class Backbone(BaseModule):
    def __init__(self, init_cfg=None):
        super().__init__(init_cfg)
        self.fc = nn.Linear(2, 2)


class Net(BaseModel):
    def __init__(self, path=None):
        super().__init__()
        init_cfg = path and dict(type='Pretrained', checkpoint=path)
        self.backbone = Backbone(init_cfg)

    def forward(self, x, mode='tensor'):
        return dict(loss=self.backbone.fc(x).sum())


class Data(Dataset):
    opened = 0

    def __init__(self, length=4, **annotations):
        self.length = length
        Data.opened += 1

    def __len__(self):
        return self.length

    def __getitem__(self, i):
        return dict(x=torch.ones(2))


@pytest.fixture
def runner(make_runner):
    def make(model, **kwargs):
        make.count += 1
        loader = dict(dataset=dict(type=Data))
        return make_runner(model, None, PWSRunner, **{'loader': loader, **kwargs})

    make.count = 0
    return make


def test_missing_weights_stop_training_before_data_is_read(runner):
    opened = Data.opened
    cfg = Config(
        dict(optim_wrapper=dict(optimizer=dict(lr=0.01))),
        filename='configs/mask_rcnn_r50_fpn_pws_1x.py',
    )
    trainer = runner(Net('checkpoints/none.pth'), cfg=cfg)
    with pytest.raises(FileNotFoundError) as error:
        trainer.train()
    assert Data.opened == opened
    message = str(error.value)
    assert 'checkpoints/none.pth of model.backbone do not exist' in message
    ways = (
        'model.backbone.init_cfg.checkpoint=torchvision://resnet50',
        'model.backbone.init_cfg.checkpoint=FILE',
        'model.backbone.init_cfg=None model.backbone.frozen_stages=-1',
        'tools/dist_train.sh configs/imagenet/resnet50_pws_in1k.py 8',
        'publish_backbone.py work_dirs/resnet50_pws_in1k/epoch_100.pth '
        'checkpoints/none.pth',
    )
    places = [message.find(way) for way in ways]
    assert -1 not in places and places == sorted(places)
    assert 'tools/dist_train.sh configs/mask_rcnn_r50_fpn_pws_1x.py 8' in message
    assert ' optim_wrapper.optimizer.lr=0.001 ' in message


def test_pretrained_weights_that_exist_are_loaded(runner, tmp_path):
    path = str(tmp_path / 'backbone.pth')
    torch.save({k: 0 * v for k, v in Backbone().state_dict().items()}, path)
    model = Net(path)
    trainer = runner(model, optim_wrapper=dict(optimizer=dict(type='SGD', lr=0.0)))
    trainer.train()
    assert trainer.iter == 1
    assert all(p.abs().max() == 0 for p in model.parameters())


@WEIGHT_INITIALIZERS.register_module()
class FromStore:
    """An initializer whose ``checkpoint`` is not a file."""

    def __init__(self, checkpoint):
        self.checkpoint = checkpoint

    def __call__(self, module):
        module.loaded = self.checkpoint


def test_an_unknown_init_cfg_is_not_checked(runner):
    model = Net()
    model.backbone = Backbone(dict(type='FromStore', checkpoint='my weights'))
    runner(model).train()
    assert model.backbone.loaded == 'my weights'


@pytest.mark.parametrize('load_from', [True, False], ids=['named', 'the latest'])
def test_resuming_needs_no_pretrained_weights(runner, tmp_path, load_from):
    runner(Net()).train()
    path = str(tmp_path / 'work_dir' / 'epoch_1.pth') if load_from else None
    resumed = runner(Net('none.pth'), resume=True, load_from=path, epochs=2)
    resumed.train()
    assert resumed.iter == 2


class Evaluator(BaseMetric):
    calls = 0

    def process(self, data_batch, data_samples):
        self.results.append(1)

    def compute_metrics(self, results):
        Evaluator.calls += 1
        return dict(ones=len(results))


@pytest.mark.parametrize('by_epoch', [True, False])
def test_a_resumed_training_without_steps_validates(runner, tmp_path, by_epoch):
    class Judged(Net):
        def forward(self, x, mode='tensor'):
            return super().forward(x) if mode == 'loss' else [x]

    train_cfg = dict(by_epoch=True, max_epochs=2)
    if not by_epoch:
        train_cfg = dict(by_epoch=False, max_iters=2, val_interval=1)
    options = dict(
        train_cfg=train_cfg,
        val_dataloader=dict(
            batch_size=2,
            num_workers=0,
            sampler=dict(type='DefaultSampler', shuffle=False),
            dataset=dict(type=Data),
        ),
        val_evaluator=[Evaluator()],
        val_cfg=dict(),
        default_hooks=dict(
            checkpoint=dict(type='CheckpointHook', interval=1, by_epoch=by_epoch)
        ),
    )
    Evaluator.calls = 0
    runner(Judged(), **options).train()
    assert Evaluator.calls == 2
    again = runner(Judged(), resume=True, **options)
    again.train()
    assert again.iter == 2 and Evaluator.calls == 3
    (log,) = (tmp_path / 'work_dir').glob(f'{again.timestamp}/vis_data/scalars.json')
    assert '"ones": 2' in log.read_text()


def test_resuming_without_a_checkpoint_needs_pretrained_weights(runner):
    with pytest.raises(FileNotFoundError, match=r'none\.pth of model\.backbone'):
        runner(Net('none.pth'), resume=True).train()


def test_weights_named_by_a_url_are_downloaded(runner):
    with pytest.raises(ConnectionError, match='could not be downloaded'):
        runner(Net('http://127.0.0.1:9/none.pth')).train()


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


def test_a_wrong_checkpoint_is_refused(runner, tmp_path):
    """MMEngine would train from random weights or NaN, or fail with another error."""
    path = tmp_path / 'x.pth'
    weights = Net().state_dict()
    nan = {name: value * torch.nan for name, value in weights.items()}
    for content, resume, message in (
        ([weights], False, 'it holds no weights'),
        (dict(state_dict=[1]), False, 'it holds no weights'),
        (dict(state_dict=nan), False, 'it has NaN or infinity in backbone.fc.'),
        (
            dict(other=torch.ones(1)),
            False,
            'of another network: its weights, such as other, ',
        ),
        (dict(state_dict=weights), True, 'no state of a training that can be resumed'),
        (dict(state_dict=weights, meta=[1]), True, 'no state of a training'),
    ):
        torch.save(content, path)
        trainer = runner(Net(), load_from=str(path), resume=resume)
        with pytest.raises(ValueError, match=rf'x\.pth cannot be loaded: .*{message}'):
            trainer.train()
        assert not (tmp_path / 'work_dir/epoch_1.pth').exists()
    torch.save(weights, path)
    runner(Net(), load_from=str(path)).train()


def test_filters_of_another_shape_are_named_once(runner, tmp_path, messages):
    model, source = Net(), Net()
    model.backbone.conv, source.backbone.conv = (PWSConv2d(2, 2, k) for k in (3, 5))
    path = tmp_path / 'other.pth'
    torch.save(source.state_dict(), path)
    runner(model, load_from=str(path)).train()
    told = [m for m in messages if 'another shape' in m]
    assert len(told) == 1 and 'The filters of backbone.conv have' in told[0]


class Augmented(BaseTTAModel):
    def merge_preds(self, data_samples_list):
        return data_samples_list


@pytest.mark.parametrize('action', ['train', 'test', 'test --tta'])
@pytest.mark.parametrize(
    'ours, theirs', [('PWS', 'BN'), ('BN', 'PWS'), ('PWS', 'plain')]
)
def test_weights_for_other_kinds_of_layers_are_refused(
    runner, tmp_path, action, ours, theirs
):
    """Their names fit. Without the check, a test would have wrong results."""

    def net(kind):
        model = Net()
        pws = kind == 'PWS'
        conv = ConvModule(
            *(2, 2, 3),
            conv_cfg=dict(type='PWS') if pws else None,
            norm_cfg=dict(type='BN') if kind == 'BN' else None,
        )
        model.backbone.block = conv
        return model

    path = tmp_path / 'other.pth'
    torch.save(net(theirs).state_dict(), path)
    options = dict(load_from=str(path))
    if action != 'train':
        loader = dict(
            batch_size=2,
            num_workers=0,
            sampler=dict(type='DefaultSampler', shuffle=False),
            dataset=dict(type=Data),
        )
        options.update(
            test_dataloader=loader, test_cfg=dict(), test_evaluator=[Evaluator()]
        )
    with pytest.raises(ValueError, match=rf'other\.pth cannot be .* {theirs}.*block'):
        model = net(ours)
        model = Augmented(model) if 'tta' in action else model
        getattr(runner(model, **options), action.split()[0])()
    torch.save(net(ours).state_dict(), path)
    if action == 'train':
        runner(net(ours), **options).train()


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


class SemiSupervised(SemiBaseDetector):
    """Loads weights as SoftTeacher does, into two small networks."""

    def __init__(self, kind):
        BaseModel.__init__(self)
        self.student, self.teacher = Net(), Net()
        for part in (self.student, self.teacher):
            part.backbone.conv = build_conv_layer(dict(type=kind), 2, 2, 3)

    def forward(self, x, mode='tensor'):
        return self.student(x)


def test_student_and_teacher_start_from_a_supervised_detector(runner, tmp_path):
    source = SemiSupervised('PWS').student
    path = tmp_path / 'supervised.pth'
    torch.save(source.state_dict(), path)
    optim_wrapper = dict(optimizer=dict(type='SGD', lr=0.0))
    model = SemiSupervised('PWS')
    trainer = runner(model, load_from=str(path), optim_wrapper=optim_wrapper)
    trainer.train()
    for part in (model.student, model.teacher):
        for name, value in source.state_dict().items():
            assert torch.equal(part.state_dict()[name], value)
    plain = SemiSupervised('Conv2d')
    with pytest.raises(ValueError, match='a PWS checkpoint, and this network has'):
        runner(plain, load_from=str(path), optim_wrapper=optim_wrapper).train()
    torch.save(dict(other=torch.ones(1)), path)
    with pytest.raises(ValueError, match='of another network'):
        runner(model, load_from=str(path), optim_wrapper=optim_wrapper).train()
