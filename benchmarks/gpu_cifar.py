"""Train a ResNet-20 on CIFAR-10 for a given time, with the images on the GPU."""

import io
import json
import math
from collections.abc import Iterator
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from device import describe_machine
from gpu_images import read_images
from gpu_report import write_json
from mmengine.logging import MMLogger
from PIL import Image
from torch import Tensor, nn

from pws_mmdet.layers import PWSConv2d
from pws_mmdet.models import PWSCifarResNet

MEAN = (125.307, 122.961, 113.8575)
STD = (51.5865, 50.847, 51.255)
BATCH = 128


def train_cifar(kind: str, data: Path, out: Path, budget: float, toy: bool) -> None:
    """Train a ResNet-20 for some seconds, and write its accuracy.

    Args:
        kind: PWS, BN or GN.
        data: Zip file of JPEG images.
        out: The file to write.
        budget: Seconds of the training.
        toy: Train on a CPU.
    """
    device = torch.device('cpu' if toy else 'cuda')
    torch.backends.cudnn.benchmark = True
    torch.manual_seed(0)
    MMLogger.get_instance('cifar', log_level='WARNING')
    x, labels = load(data, 'train', device)
    test_x, test_labels = load(data, 'test', device)
    classifier = Classifier(kind, device, amp=not toy)
    classifier.init_alpha(x[:512])
    start = perf_counter()
    epochs, steps, loss = train(classifier, x, labels, budget)
    seconds = perf_counter() - start
    report = dict(
        part='cifar',
        kind=kind,
        machine=describe_machine(device),
        images=len(x),
        test_images=len(test_x),
        epochs=epochs,
        seconds=seconds,
        steps_per_second=steps / seconds,
        loss=loss,
        accuracy=test(classifier, test_x, test_labels),
    )
    write_json(report, out)
    print(json.dumps(report), flush=True)


def load(data: Path, split: str, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return the normalized images and the labels of a split."""

    def decode(content: bytes) -> np.ndarray:
        return np.asarray(Image.open(io.BytesIO(content)).convert('RGB'))

    images, labels = read_images(data, split, decode)
    x = torch.from_numpy(np.stack(images)).to(device).permute(0, 3, 1, 2)
    mean, std = (torch.tensor(v, device=device).view(-1, 1, 1) for v in (MEAN, STD))
    x = ((x - mean) / std).contiguous(memory_format=torch.channels_last)
    return x, torch.tensor(labels, device=device)


class Classifier(nn.Module):
    """A ResNet-20 with 10 classes.

    Args:
        kind: PWS, BN or GN.
        device: Its device.
        amp: Compute in bfloat16.
    """

    def __init__(self, kind: str, device: torch.device, amp: bool) -> None:
        super().__init__()
        plain = dict(type='Conv2d')
        cfg = dict(
            PWS=dict(),
            BN=dict(conv_cfg=plain, norm_cfg=dict(type='BN')),
            GN=dict(conv_cfg=plain, norm_cfg=dict(type='GN', num_groups=8)),
        )[kind]
        self.amp = amp
        self.backbone = PWSCifarResNet(20, **cfg)
        self.backbone.init_weights()
        self.head = nn.Sequential(
            nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10)
        )
        self.to(device, memory_format=torch.channels_last)

    def forward(self, images: Tensor) -> Tensor:
        with torch.autocast(images.device.type, torch.bfloat16, enabled=self.amp):
            return self.head(self.backbone(images)[0]).float()

    @torch.no_grad()
    def init_alpha(self, images: Tensor) -> None:
        """Set alpha from a batch of images, as PWSAlphaInitHook does."""

        def set_alpha(conv: PWSConv2d, inputs: Any, y: Tensor) -> Tensor:
            alpha = (2 / y.float().var()).sqrt()
            conv.alpha.data.fill_(alpha)
            return y * alpha

        hooks = [
            m.register_forward_hook(set_alpha)
            for name, m in self.backbone.named_modules()
            if isinstance(m, PWSConv2d)
            and not (name.startswith('layer') and name.endswith(('.conv2', '.conv3')))
        ]
        self(images)
        for hook in hooks:
            hook.remove()

    def make_optimizer(self) -> torch.optim.SGD:
        """Return SGD without weight decay for alpha."""
        named = dict(self.named_parameters())
        alphas = [p for name, p in named.items() if name.endswith('.alpha')]
        others = [p for name, p in named.items() if not name.endswith('.alpha')]
        groups = [dict(params=others), dict(params=alphas, weight_decay=0.0)]
        return torch.optim.SGD(
            [group for group in groups if group['params']],
            lr=0.1,
            momentum=0.9,
            weight_decay=5e-4,
        )


def train(
    classifier: Classifier, x: Tensor, labels: Tensor, budget: float
) -> tuple[float, int, float | None]:
    """Train for some seconds, and one epoch at least.

    The learning rate drops by 10 at 1/2 and 3/4 of the time.

    Returns:
        The number of epochs and of steps, and the loss of the last whole epoch; None if
        the loss is not finite.
    """
    optimizer = classifier.make_optimizer()
    classifier.train()
    epochs, steps, losses = 0, 0, []
    start = perf_counter()
    over = False
    while not over:
        total = torch.zeros((), device=x.device)
        count = 0
        for chosen in batches(x):
            if steps % 20 == 0:
                if x.is_cuda:
                    torch.cuda.synchronize()  # the steps before this one are done
                done = (perf_counter() - start) / budget
                over = done >= 1 and epochs > 0
                if over:
                    break
                for group in optimizer.param_groups:
                    group['lr'] = 0.1 * 0.1 ** ((done >= 0.5) + (done >= 0.75))
            loss = F.cross_entropy(classifier(augment(x[chosen])), labels[chosen])
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            total += loss.detach()
            steps += 1
            count += 1
        else:
            epochs += 1
            losses.append(total.item() / count)
            over = (perf_counter() - start) >= budget or not math.isfinite(losses[-1])
    loss = losses[-1] if losses and math.isfinite(losses[-1]) else None
    return round(steps / max(1, len(x) // min(BATCH, len(x))), 2), steps, loss


def batches(x: Tensor) -> Iterator[Tensor]:
    """Yield the indices of the images of each batch of an epoch."""
    order = torch.randperm(len(x), device=x.device)
    size = min(BATCH, len(x))
    for i in range(0, len(x) - size + 1, size):
        yield order[i : i + size]


def augment(images: Tensor) -> Tensor:
    """Return crops of padded images; half of them are flipped."""
    n, device = len(images), images.device
    padded = F.pad(images, (4, 4, 4, 4)).permute(0, 2, 3, 1)
    offsets = torch.randint(9, (2, n, 1), device=device)
    line = torch.arange(32, device=device)
    rows, columns = offsets + line
    flipped = torch.rand(n, 1, device=device) < 0.5
    columns = torch.where(flipped, columns.flip(1), columns)
    first = torch.arange(n, device=device)[:, None, None]
    crops = padded[first, rows[:, :, None], columns[:, None, :]]
    return crops.permute(0, 3, 1, 2)


@torch.no_grad()
def test(classifier: Classifier, x: Tensor, labels: Tensor) -> float:
    """Return the accuracy in %."""
    classifier.eval()
    right = sum(
        int((classifier(a).argmax(1) == b).sum())
        for a, b in zip(x.split(1000), labels.split(1000), strict=True)
    )
    return 100 * right / len(x)
