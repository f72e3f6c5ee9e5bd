"""Tests of the programs in tools/, run from the command line."""

import json
import os
import shutil
import sys

import pytest
import torch

from pws_mmdet.checkpoint import read_checkpoint

pytestmark = pytest.mark.slow

SSD = 'configs/mini/ssd96_vgg16_pws_digits.py'
MASK_RCNN = 'configs/mini/mask_rcnn_r18_fpn_pws_digits.py'
HEADLINE = 'configs/mask_rcnn_r50_fpn_pws_1x.py'


def options(data, epochs=1, evaluator='evaluator.0', **kwargs):
    values = {
        'train_dataloader.dataset.data_root': f'{data}/',
        'val_dataloader.dataset.data_root': f'{data}/',
        'test_dataloader.dataset.data_root': f'{data}/',
        f'val_{evaluator}.ann_file': f'{data}/annotations/instances_val2017.json',
        f'test_{evaluator}.ann_file': f'{data}/annotations/instances_val2017.json',
        'train_dataloader.batch_size': 2,
        'train_cfg.max_epochs': epochs,
        'train_cfg.val_interval': epochs,
        'default_hooks.checkpoint.interval': 1,
        'default_hooks.checkpoint.max_keep_ckpts': -1,
        **kwargs,
    }
    return ['--cfg-options', *(f'{key}={value}' for key, value in values.items())]


@pytest.fixture
def train(run, root):
    def train_program(config, *args, **kwargs):
        return run(
            sys.executable, root / 'tools/train.py', root / config, *args, **kwargs
        )

    return train_program


@pytest.fixture
def data(digits, tmp_path):
    """Return a copy of the images of digits, which the test may damage."""
    folder = tmp_path / 'copy_of_digits'
    shutil.copytree(digits, folder)
    return folder


def weights(path):
    return read_checkpoint(path).weights


@pytest.mark.parametrize('program', ['train', 'test'])
def test_help_shows_the_options_of_mmdetection(run, root, program):
    text = run(sys.executable, root / f'tools/{program}.py', '--help').stdout
    assert f'usage: {program}.py' in text
    for flag in ('--work-dir', '--cfg-options', '--launcher'):
        assert flag in text


@pytest.mark.parametrize(
    'script', ['dist_train', 'dist_test', 'slurm_train', 'slurm_test']
)
def test_scripts_without_arguments_print_their_usage(run, root, script):
    process = run(root / f'tools/{script}.sh', check=False)
    assert process.returncode == 2
    assert 'usage: ' in process.stdout


def test_two_cpu_processes_train_validate_and_test(run, root, digits, tmp_path):
    log = run(root / 'tools/dist_train.sh', root / SSD, 2, *options(digits)).stdout
    # 12 images in batches of 2 on 2 processes
    assert 'Epoch(train) [1][3/3]' in log or 'Saving checkpoint at 1 epochs' in log
    checkpoint = tmp_path / 'work_dirs/ssd96_vgg16_pws_digits/epoch_1.pth'
    assert checkpoint.is_file()
    log = run(
        root / 'tools/dist_test.sh', root / SSD, checkpoint, 2, *options(digits)
    ).stdout
    assert 'Epoch(test)' in log and 'coco/bbox_mAP' in log


def test_a_resumed_run_equals_the_uninterrupted_run(train, digits, tmp_path):
    three = options(digits, 3, **{'randomness.seed': 5})
    train(SSD, '--work-dir', 'whole', *three)
    # The same schedule, stopped after its second epoch
    shutil.copytree(tmp_path / 'whole', tmp_path / 'cut')
    (tmp_path / 'cut/epoch_3.pth').unlink()
    (tmp_path / 'cut/last_checkpoint').write_text(str(tmp_path / 'cut/epoch_2.pth'))
    log = train(SSD, '--work-dir', 'cut', '--resume', *three).stdout
    assert 'cut/epoch_2.pth' in log
    whole, cut = (
        weights(tmp_path / f'{name}/epoch_3.pth') for name in ('whole', 'cut')
    )
    second = weights(tmp_path / 'whole/epoch_2.pth')
    for key, value in whole.items():
        assert torch.equal(value, cut[key]), key
    assert any(not torch.equal(value, whole[key]) for key, value in second.items())


def test_an_error_in_one_process_ends_the_run(run, root, digits, tmp_path):
    (tmp_path / 'dies.py').write_text(
        'from mmengine.dist import get_rank\n'
        'from mmengine.hooks import Hook\n'
        'from mmengine.registry import HOOKS\n'
        '@HOOKS.register_module()\n'
        'class Die(Hook):\n'
        '    def after_train_iter(self, *args, **kwargs):\n'
        '        if get_rank() == 1:\n'
        "            raise ArithmeticError('worker one died')\n"
    )
    (tmp_path / 'config.py').write_text(
        f'_base_ = {str(root / SSD)!r}\n'
        "custom_imports = dict(imports=['pws_mmdet', 'dies'])\n"
        "custom_hooks = [dict(type='Die')]\n"
    )
    process = run(
        root / 'tools/dist_train.sh',
        'config.py',
        2,
        *options(digits),
        check=False,
        PYTHONPATH=str(tmp_path),
    )
    assert process.returncode != 0
    assert 'Traceback' in process.stdout
    assert process.stdout.splitlines()[-1] == 'ArithmeticError: worker one died'


def test_an_error_before_training_is_the_last_output(run, root, tmp_path):
    process = run(
        root / 'tools/dist_train.sh',
        root / SSD,
        2,
        *options(tmp_path / 'nowhere'),
        check=False,
    )
    assert process.returncode == 2
    stopped = process.stdout.rindex('train.py stops; PWS_DEBUG=1 shows where:\n')
    last = process.stdout[stopped:]
    assert 'FileNotFoundError: ' in last and 'nowhere' in last
    assert 'Traceback' not in last and 'torch' not in last


def test_the_error_of_a_wrong_option_is_the_last_output(run, root):
    launch = root / 'tools/dist_train.sh'
    process = run(launch, root / SSD, 2, '--cfg-options', 'typo', check=False)
    assert process.returncode == 2
    last = process.stdout.splitlines()[-1]
    assert last == (
        "train.py: error: argument --cfg-options: must be KEY=VALUE ..., got 'typo'"
    )


def test_port_and_nodes_are_passed_on(run, root, tmp_path):
    fake = tmp_path / 'python'
    fake.write_text('#!/bin/sh\necho "$@"\n')
    fake.chmod(0o755)
    line = run(
        root / 'tools/dist_train.sh',
        'c.py',
        4,
        '--amp',
        '--cfg-options',
        'a=[1, 2]',
        PYTHON=str(fake),
        NNODES='2',
        NODE_RANK='1',
        MASTER_ADDR='10.0.0.1',
        PORT='1234',
    ).stdout
    for part in (
        '--nnodes=2',
        '--node_rank=1',
        '--master_addr=10.0.0.1',
        '--master_port=1234',
        '--nproc_per_node=4',
        'train.py c.py --launcher pytorch --amp --cfg-options a=[1, 2]',
    ):
        assert part in line
    # Several nodes must use the same port, so the script does not look for a free one.
    assert (
        '--master_port=29500'
        in run(
            root / 'tools/dist_test.sh',
            'c.py',
            'x.pth',
            4,
            PYTHON=str(fake),
            NNODES='2',
        ).stdout
    )


def test_the_command_line_of_srun(run, root, tmp_path):
    srun = tmp_path / 'srun'
    srun.write_text('#!/bin/sh\necho "$@"\n')
    srun.chmod(0o755)
    path = os.pathsep.join([str(tmp_path), os.environ['PATH']])
    line = run(
        root / 'tools/slurm_train.sh',
        *('part', 'job', 'c.py', 'work', '--amp'),
        PATH=path,
        GPUS='16',
        SRUN_ARGS='--qos high',
    ).stdout
    for part in (
        '-p part --job-name=job --gres=gpu:8 --ntasks=16',
        '--kill-on-bad-exit=1 --qos high python -u',
        'train.py c.py --work-dir=work --amp --launcher=slurm',
    ):
        assert part in line
    line = run(
        root / 'tools/slurm_test.sh', 'part', 'job', 'c.py', 'x.pth', PATH=path
    ).stdout
    assert 'test.py c.py x.pth --launcher=slurm' in line


def test_the_message_about_missing_weights_has_a_command_that_goes_on(train, run):
    """The weights are missed before the data, and the command misses only the data.

    The command works in any folder.
    """
    process = train(HEADLINE, check=False)
    assert process.returncode != 0
    assert 'loading annotations' not in process.stdout
    lines = process.stdout.splitlines()
    [place] = [i for i, line in enumerate(lines) if 'FileNotFoundError: ' in line]
    assert 'checkpoints/resnet50_pws_in1k.pth, the pretrained weights' in lines[place]
    process = run('bash', '-c', lines[place + 1], check=False)
    assert process.returncode != 0
    assert 'FileNotFoundError: Data that the config names is missing' in process.stdout


def test_missing_data_is_named(train, tmp_path):
    process = train(SSD, *options(tmp_path / 'none'), check=False)
    assert process.returncode != 0
    assert 'none/annotations/instances_train2017.json' in process.stdout
    assert 'FileNotFoundError' in process.stdout


def test_a_corrupt_image_is_named(train, data):
    for path in (data / 'train2017').iterdir():
        path.write_bytes(b'not an image')
    process = train(SSD, *options(data), check=False)
    assert process.returncode != 0
    assert 'failed to load image' in process.stdout
    assert 'train2017/0000' in process.stdout


def test_a_training_set_without_boxes_is_refused(train, data):
    path = data / 'annotations/instances_train2017.json'
    content = json.loads(path.read_text())
    path.write_text(json.dumps({**content, 'annotations': []}))
    process = train(SSD, *options(data), check=False)
    assert process.returncode != 0
    assert 'The training set is empty: no image is left of' in process.stdout


@pytest.mark.parametrize(
    'config, evaluator', [(SSD, 'evaluator.0'), (MASK_RCNN, 'evaluator')]
)
def test_images_without_ground_truth_are_trained_on(train, data, config, evaluator):
    path = data / 'annotations/instances_train2017.json'
    content = json.loads(path.read_text())
    boxes = [a for a in content['annotations'] if a['image_id'] == 1]
    path.write_text(json.dumps({**content, 'annotations': boxes}))
    key = 'train_dataloader.dataset.filter_cfg.filter_empty_gt'
    log = train(config, *options(data, 1, evaluator, **{key: False})).stdout
    assert 'Saving checkpoint at 1 epochs' in log
    assert (
        'nan' not in log.lower().split('saving checkpoint')[0].split('epoch(train)')[-1]
    )


def test_a_hostile_checkpoint_is_refused(run, root, digits, tmp_path):
    class Hostile:
        def __reduce__(self):
            return open, (str(tmp_path / 'executed'), 'w')

    torch.save(dict(state_dict={}, meta=dict(x=Hostile())), tmp_path / 'hostile.pth')
    process = run(
        sys.executable,
        root / 'tools/test.py',
        root / SSD,
        'hostile.pth',
        *options(digits),
        check=False,
    )
    assert process.returncode != 0
    assert 'hostile.pth was not loaded: it holds' in process.stdout
    assert not (tmp_path / 'executed').exists()


def test_a_table_is_made_from_its_runs(run, root, digits):
    """Run two rows of Table 1, and make the table from their records."""
    options = ['table1', '--scale', 'mini']
    command = [sys.executable, root / 'tools/paper/run_table.py', *options]
    command += ['--rows', 'pws-b8', 'bn-b8', '--data', digits, '--jobs', 2]
    log = run(*command).stdout
    assert '[2/2]' in log and 'finished, AP ' in log
    assert '2 runs, 2 of them done' in run(*command).stdout
    program = root / 'tools/paper/make_table.py'
    table = run(sys.executable, program, *options).stdout
    for row, figure in (('PWS', '77.66'), ('BN', '76.74')):
        line = next(line for line in table.splitlines() if f'| {row} |' in line)
        paper, ap50, ap = line.split('|')[-4:-1]
        assert paper.strip() == figure and float(ap50) >= float(ap) >= 0
    program = root / 'tools/paper/plot_curves.py'
    records = [f'work_dirs/tables/table1-mini.jsonl:{m}-b8-s0' for m in ('pws', 'bn')]
    run(sys.executable, program, *records, '-o', 'curves.png')


def test_a_divergence_stops_the_training(train, digits):
    lr = {'optim_wrapper.optimizer.lr': 1e10}
    process = train(SSD, *options(digits, **lr), check=False)
    assert process.returncode != 0
    assert 'DivergenceError: Training diverged at iteration ' in process.stdout
