from functools import partial

import numpy as np
from mmengine.dataset import worker_init_fn
from mmengine.dist import get_rank
from mmengine.hooks import DistSamplerSeedHook
from mmengine.registry import HOOKS
from mmengine.runner import Runner, set_random_seed


@HOOKS.register_module(force=True)
class EpochSeedHook(DistSamplerSeedHook):
    """Seed every epoch from (seed, epoch, rank): a resumed run repeats exactly.

    MMEngine saves no state of the random number generators. With a fixed
    ``randomness=dict(seed=...)`` this hook makes all randomness of an epoch,
    data loading workers included, a function of the seed, the epoch and the
    rank, so that a run resumed from the end of an epoch goes on as the
    uninterrupted one did. Without a fixed seed it is ``DistSamplerSeedHook``.
    """

    def before_train_epoch(self, runner: Runner) -> None:
        super().before_train_epoch(runner)
        seed = runner._randomness_cfg.get('seed')
        if seed is None:
            return
        entropy = np.random.SeedSequence((seed, runner.epoch, get_rank()))
        # MMEngine adds the worker's number; leave room below 2**32 for it
        epoch_seed = int(entropy.generate_state(1)[0]) // 2
        set_random_seed(epoch_seed)
        loader = runner.train_dataloader
        if loader.num_workers:
            loader.worker_init_fn = partial(
                worker_init_fn,
                num_workers=loader.num_workers,
                rank=0,  # it is in epoch_seed
                seed=epoch_seed,
                disable_subprocess_warning=True,
            )
            # Persistent workers would carry the state of the last epoch on:
            # without its iterator the loader starts new ones.
            loader._iterator = None
