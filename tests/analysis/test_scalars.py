import json
import math

import pytest

from pws_mmdet.analysis import read_scalars


@pytest.fixture
def write(tmp_path):
    """Write a log file of MMEngine into the work_dir ``tmp_path``."""

    def write_log(name, *entries, end=''):
        path = tmp_path / name / 'vis_data' / 'scalars.json'
        path.parent.mkdir(parents=True)
        path.write_text(''.join(json.dumps(e) + '\n' for e in entries) + end)
        return path

    return write_log


def train(step, **values):
    return dict(lr=0.1, loss=2.0, time=0.5, epoch=1, iter=step, step=step, **values)


def test_training_steps_and_validations(write, tmp_path):
    path = write(
        '20260101_000000',
        train(10),
        train(20, grad_norm=3.0),
        {'coco/bbox_mAP': 0.25, 'data_time': 0.1, 'time': 0.2, 'step': 1},
        {'coco/bbox_mAP': None, 'note': 'text', 'step': 2},
    )
    scalars = read_scalars(tmp_path)
    assert scalars.paths == [path]
    assert scalars.training == {10: train(10), 20: train(20, grad_norm=3.0)}
    assert scalars.validations[1] == {'coco/bbox_mAP': 0.25}
    assert list(scalars.validations[2]) == ['coco/bbox_mAP']
    assert math.isnan(scalars.validations[2]['coco/bbox_mAP'])
    assert scalars.validated_at == {1: 20, 2: 20}


def test_a_resumed_training_replaces_what_it_repeats(write, tmp_path):
    second = write('20260102_000000', train(20), dict(mAP=0.3, step=1), train(30))
    first = write(
        '20260101_000000',
        *(train(10), train(20, first=True), train(30, first=True)),
        dict(mAP=0.1, step=1),
        end='{"lr": 0.1, "lo',  # it was killed here
    )
    scalars = read_scalars(str(tmp_path))
    assert scalars.paths == [first, second]
    assert scalars.training == {step: train(step) for step in (10, 20, 30)}
    assert scalars.validations == {1: {'mAP': 0.3}}
    assert scalars.validated_at == {1: 20}


def test_a_validation_before_the_first_training_step(write, tmp_path):
    write('20260101_000000', dict(mAP=0.1, step=0))
    assert read_scalars(tmp_path).validated_at == {0: 0}


@pytest.mark.parametrize(
    'entry',
    [[1], 3, None, dict(lr=0.1), dict(step='a'), dict(step=1, lr='x'), dict(loss=1)],
)
def test_another_json_file_is_an_error(write, tmp_path, entry):
    path = write('20260101_000000', train(1), entry)
    with pytest.raises(ValueError, match=f"{path} is no log of MMEngine's"):
        read_scalars(tmp_path)


def test_a_folder_without_a_log_is_an_error(tmp_path):
    with pytest.raises(ValueError, match='is no work_dir of a training'):
        read_scalars(tmp_path)
