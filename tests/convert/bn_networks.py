"""Small networks with BN that the tests of conversions share."""

import torch
import torch.nn.functional as F
from torch import nn


def settle(model, x):
    """Give BN layers statistics, gains and biases that a training could leave."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            if module.affine:
                nn.init.uniform_(module.weight, 0.5, 1.5)
                nn.init.normal_(module.bias, 0, 0.3)
            module.momentum = None  # the mean over all batches
            module.reset_running_stats()
    model.train()
    for module in model.modules():  # MMDetection's ResNet may keep them in eval mode
        module.training = True
    with torch.no_grad():
        for part in x.split(8):
            model(part)
    model.eval()
    return model


def images(n=32, size=32):
    """Noise of a brightness that differs from image to image, blurred."""
    x = torch.randn(n, 3, size + 4, size + 4)
    return 2 * F.avg_pool2d(x, 5, 1) + torch.randn(n, 3, 1, 1)


class Net(nn.Module):
    """Two branches, groups, a stride, a dilation, a 7x7, a 1x1, a shared layer."""

    inplace = False

    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 12, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(12)
        self.left = nn.Sequential(
            nn.Conv2d(12, 12, 3, padding=1, groups=3), nn.BatchNorm2d(12), nn.ReLU()
        )
        self.right = nn.Sequential(
            nn.Conv2d(12, 12, 3, padding=2, dilation=2, padding_mode='reflect'),
            nn.BatchNorm2d(12, affine=False),
        )
        self.shared = nn.Conv2d(12, 12, 3, 1, 'same')
        self.last = nn.Conv2d(12, 5, 1)

    def forward(self, x):
        x = F.relu(self.bn1(self.conv1(x)))
        x = F.relu(self.left(x) + self.right(x))
        for _ in range(2):
            x = F.relu(self.shared(x), self.inplace)
        return self.last(x)


def check_same(made, net, x, tolerance=1e-4):
    """Check that two networks compute the same, apart from rounding.

    Args:
        made, net: The networks. They return a tensor, or several.
        x: Their input.
        tolerance: The largest error, as a part of the largest output.
    """
    with torch.no_grad():
        outputs = [
            y if isinstance(y, (tuple, list)) else [y] for y in (made(x), net(x))
        ]
    for y, expected in zip(*outputs, strict=True):
        y, expected = y.double(), expected.double()
        bound = tolerance * expected.abs().max().item()
        torch.testing.assert_close(y, expected, rtol=0, atol=bound)
