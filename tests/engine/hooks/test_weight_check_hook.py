"""Missing pretrained weights and wrong checkpoints stop a run."""

import functools

import pytest
import torch
from mmcv.cnn import ConvModule, build_conv_layer
from mmdet.models import SemiBaseDetector
from mmengine.model import BaseModel, BaseTTAModel
from mmengine.registry import WEIGHT_INITIALIZERS
from small_training import Backbone, Data, Evaluator, Net, small_runner

from pws_mmdet import PWSConv2d


@pytest.fixture
def runner(make_runner):
    return functools.partial(small_runner, make_runner)


def test_missing_weights_stop_training_before_data_is_read(runner):
    opened = Data.opened
    with pytest.raises(FileNotFoundError) as error:
        runner(Net('checkpoints/none.pth')).train()
    assert Data.opened == opened
    assert str(error.value).startswith(
        'checkpoints/none.pth, the pretrained weights of model.backbone, does not exist'
    )


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


def test_resuming_without_a_checkpoint_needs_pretrained_weights(runner):
    with pytest.raises(FileNotFoundError, match=r'none\.pth, .* of model\.backbone'):
        runner(Net('none.pth'), resume=True).train()


def test_weights_named_by_a_url_are_downloaded(runner):
    with pytest.raises(ConnectionError, match='could not be downloaded'):
        runner(Net('http://127.0.0.1:9/none.pth')).train()


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
