from functools import partial

import numpy as np
from mmengine.dataset import worker_init_fn
from mmengine.dist import get_rank
from mmengine.hooks import DistSamplerSeedHook
from mmengine.registry import HOOKS
from mmengine.runner import Runner, set_random_seed


@HOOKS.register_module(force=True)
class EpochSeedHook(DistSamplerSeedHook):
    """Seed every epoch from (seed, epoch, rank), so that a resumed run is the same.

    MMEngine saves no state of the random number generators. With a fixed seed
    (``randomness=dict(seed=...)``), this hook makes all random numbers of an epoch a
    function of the seed, the epoch and the rank, also those in the workers that load
    data. A run that is resumed from the end of an epoch then has the same results as
    one without an interruption. Without a fixed seed, the hook is MMEngine's
    ``DistSamplerSeedHook``.
    """

    def before_train_epoch(self, runner: Runner) -> None:
        super().before_train_epoch(runner)
        seed = runner._randomness_cfg.get('seed')
        if seed is None:
            return
        entropy = np.random.SeedSequence((seed, runner.epoch, get_rank()))
        # MMEngine adds the number of the worker: half of the seed stays below 2**32.
        epoch_seed = int(entropy.generate_state(1)[0]) // 2
        set_random_seed(epoch_seed)
        loader = runner.train_dataloader
        if loader.num_workers:
            loader.worker_init_fn = partial(
                worker_init_fn,
                num_workers=loader.num_workers,
                rank=0,  # epoch_seed depends on the rank.
                seed=epoch_seed,
                disable_subprocess_warning=True,
            )
            # Persistent workers keep their random state of the last epoch. Without
            # its iterator, the loader starts new workers.
            loader._iterator = None
