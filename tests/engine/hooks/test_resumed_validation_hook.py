import functools

import pytest
from small_training import Data, Evaluator, Net, small_runner


@pytest.fixture
def runner(make_runner):
    return functools.partial(small_runner, make_runner)


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
