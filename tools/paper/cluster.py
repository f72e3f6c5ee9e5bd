"""A cluster to train the runs of a table on: Slurm, or this machine in its place."""

import importlib.util
import math
import os
import re
import shlex
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

PROGRAMS = ('sbatch', 'srun', 'sinfo', 'sacct', 'scontrol')
DAY = 24 * 60
# Of the modules that a job imports. tools/ is no package.
FOLDER = Path(__file__).resolve().parent
# A training that leaves no checkpoint within the time limit must not start for ever.
TIMEOUTS = 20


@dataclass(frozen=True)
class Cluster:
    """Where jobs run, and for how long.

    Args:
        partition: Slurm's partition; None for this machine.
        minutes: Time limit of a job. A job that reaches it starts again, and continues.
    """

    partition: str | None
    minutes: float

    def executor(self, folder: Path, name: str, gpus: int, slot: int) -> Any:
        """Return submitit's executor of a job.

        Args:
            folder: Folder of submitit's files. All nodes must see it.
            name: Name of the job.
            gpus: Number of processes, each with a GPU if there are GPUs.
            slot: Number of the job among those that run at the same time here.
        """
        import submitit

        # The training is stopped in the seconds that are left after the signal.
        delay = math.ceil(min(120, 60 * self.minutes / 2))
        if self.partition is None:
            devices = choose_devices(gpus, slot)
            local = submitit.LocalExecutor(
                folder,
                max_num_timeout=TIMEOUTS,
                python=python_command(CUDA_VISIBLE_DEVICES=devices),
            )
            local.update_parameters(timeout_min=self.minutes, signal_delay_s=delay)
            return local
        # As in tools/slurm.sh, CPUS_PER_TASK is the number of one process.
        cores = gpus * int(os.environ.get('CPUS_PER_TASK', '5'))
        slurm = submitit.SlurmExecutor(
            folder, max_num_timeout=TIMEOUTS, python=python_command()
        )
        slurm.update_parameters(
            partition=self.partition,
            time=math.ceil(self.minutes),
            job_name=name,
            nodes=1,
            ntasks_per_node=1,
            gpus_per_node=gpus,
            cpus_per_task=cores,
            # Since Slurm 22.05, srun does not take this number from sbatch.
            srun_args=[f'--cpus-per-task={cores}'],
            signal_delay_s=delay,
            additional_parameters={'requeue': True},  # some clusters have it off
        )
        return slurm


def find_cluster(
    partition: str | None, local: bool, limit: str | None = None
) -> Cluster | None:
    """Return the cluster that a command line asks for, None if it asks for none.

    Args:
        partition: Slurm's partition, or several with commas; None for none.
        local: Whether this machine takes the place of a cluster.
        limit: Time limit of a job, in a format of sbatch. By default it is a day on
            Slurm, or the partition's limit if that is shorter.

    Raises:
        ImportError: If submitit is missing.
        RuntimeError: If a program of Slurm is missing, or Slurm does not answer.
        ValueError: If there is no such partition, or the time limit is wrong.
    """
    if partition is None and not local:
        return None
    if importlib.util.find_spec('submitit') is None:
        raise ImportError(
            'Jobs need submitit. Install it: pip install submitit, or '
            "pip install -e '.[cluster]' in the checkout."
        )
    minutes = None if limit is None else parse_time(limit)
    if limit is not None and not minutes:
        raise ValueError(
            f'--time {limit} is no time limit. Examples: 90 (minutes), 12:00:00 '
            '(hours), 1-12:00:00 (days and hours).'
        )
    if partition is None:
        return Cluster(None, minutes or 365 * DAY)
    longest = partition_limit(partition)
    if minutes and longest and minutes > longest:
        raise ValueError(
            f'--time {limit} is longer than the limit of the partition {partition}, '
            f'{longest:.0f} minutes. Give less: a job that reaches its limit is queued '
            'again, and continues.'
        )
    return Cluster(partition, minutes or min(DAY, longest or DAY))


def partition_limit(partition: str) -> float | None:
    """Return the longest time limit of Slurm's partitions in minutes, None if none.

    Raises:
        RuntimeError: If a program of Slurm is missing, or Slurm does not answer.
        ValueError: If there is no such partition.
    """
    missing = [program for program in PROGRAMS if shutil.which(program) is None]
    if missing:
        raise RuntimeError(
            f'--slurm needs programs of Slurm that are not on PATH: '
            f'{", ".join(missing)}. Run this command on a login node of the cluster, '
            'or without --slurm.'
        )
    command = ['sinfo', '--all', '--noheader', '--format=%R|%l']
    answer = subprocess.run(command, capture_output=True, text=True)
    if answer.returncode:
        reason = answer.stderr.strip() or f'exit status {answer.returncode}'
        raise RuntimeError(f'Slurm does not answer: {shlex.join(command)}: {reason}')
    lines = [line.split('|') for line in answer.stdout.splitlines() if '|' in line]
    limits = {name.strip(): parse_time(limit.strip()) for name, limit in lines}
    names = partition.split(',')
    if unknown := [name for name in names if name not in limits]:
        raise ValueError(
            f'Slurm has no partition {", ".join(map(repr, unknown))}. Its partitions: '
            f'{", ".join(limits)}.'
        )
    chosen = [limits[name] for name in names]
    return None if None in chosen else max(chosen)


def parse_time(text: str) -> float | None:
    """Return a time limit of sbatch or sinfo in minutes; None if it is no number.

    The formats: M, M:S, H:M:S, D-H, D-H:M and D-H:M:S (source: the manual of sbatch).
    """
    match = re.fullmatch(r'(?:(\d+)-)?(\d+)(?::(\d+))?(?::(\d+))?', text)
    if not match:
        return None
    days, *rest = match.groups()
    numbers = [int(number) for number in rest if number is not None]
    if days is None and len(numbers) < 3:
        numbers.insert(0, 0)  # no hours
    hours, minutes, seconds = (*numbers, 0, 0)[:3]
    return int(days or 0) * DAY + hours * 60 + minutes + seconds / 60


def python_command(**variables: str | None) -> str:
    """Return the shell command that starts Python in a job.

    Args:
        **variables: Environment variables of the job besides PYTHONPATH; those that
            are None are left out.
    """
    paths = filter(None, [str(FOLDER), os.environ.get('PYTHONPATH')])
    variables = {'PYTHONPATH': os.pathsep.join(paths), **variables}
    given = [f'{name}={value}' for name, value in variables.items() if value]
    return shlex.join(['env', *given, sys.executable])


def choose_devices(gpus: int, slot: int) -> str | None:
    """Return the CUDA_VISIBLE_DEVICES of a job on this machine, None without GPUs."""
    import torch

    count = torch.cuda.device_count()
    if not count:
        return None
    given = os.environ.get('CUDA_VISIBLE_DEVICES')
    names = given.split(',') if given else [str(i) for i in range(count)]
    return ','.join(names[(slot * gpus + i) % len(names)] for i in range(gpus))
