"""What a run was trained with: revision of the code, versions and hardware."""

import contextlib
import importlib.metadata
import os
import platform
import subprocess
from pathlib import Path


def revision(root: str | Path) -> str:
    """Return the commit of a checkout, with '+' if its code differs from it."""

    def git(*arguments):
        return subprocess.run(
            ['git', '-C', root, *arguments], capture_output=True, text=True, check=True
        ).stdout.strip()

    try:
        changed = git('status', '--porcelain', 'pws_mmdet', 'configs', 'tools')
        return git('rev-parse', '--short=10', 'HEAD') + ('+' if changed else '')
    except (OSError, subprocess.CalledProcessError):
        return 'unknown'


def describe_environment(root: str | Path) -> dict:
    """Return revision, versions and hardware for the records."""
    import mmcv
    import mmdet
    import mmengine
    import torch

    import pws_mmdet
    from pws_mmdet.utils.machine import cpu_name

    modules = (pws_mmdet, torch, mmengine, mmcv, mmdet)
    versions = {module.__name__: module.__version__ for module in modules}
    versions['python'] = platform.python_version()
    gpus = torch.cuda.device_count()
    gpu = torch.cuda.get_device_name() if gpus else None
    hardware = dict(cpu=cpu_name(), cores=len(os.sched_getaffinity(0)))
    return dict(
        revision=revision(root),
        versions=versions,
        hardware=dict(hardware, gpu=gpu, gpus=gpus),
    )


def installed(*packages: str) -> dict[str, str]:
    """Return the versions of packages that are installed, without importing them."""
    versions = {}
    for package in packages:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[package] = importlib.metadata.version(package)
    return versions
