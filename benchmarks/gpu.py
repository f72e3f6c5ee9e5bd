"""What PWS costs and does on a GPU, in parts that gpu.sh runs one by one.

    python benchmarks/gpu.py speed ResNet-50 --out parts/resnet.json --budget 60
    python benchmarks/gpu.py speed ResNet-50 --out parts/filters.json --training \
        --kinds plain BN GN PWS 'PWS, kernel'
    python benchmarks/gpu.py cifar PWS --data cifar10_jpeg.zip --out parts/pws.json
    python benchmarks/gpu.py pack cifar10_jpeg.zip small.zip --images 24000
    python benchmarks/gpu.py report parts/*.json --out gpu.jsonl --markdown gpu.md

``speed`` compares all kinds of convolutions and norm layers side by side, as
``benchmarks/speed.py`` does: in fp32 with TF32 matrix units, in mixed precision (fp16),
and in mixed precision with weights in channels_last. "PWS, kernel" is PWS whose filters
the Triton kernel computes. What the budget does not reach is listed as not measured.
``cifar`` trains a ResNet-20 with the images on the device for as long as the budget
says; the learning rate drops by 10 at 1/2 and 3/4 of it.
"""

import argparse
import io
import json
import math
import statistics
import sys
import zipfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from time import perf_counter
from typing import Any, NamedTuple

# No torch here: `report` has to work where nothing else does.

SETTINGS = {
    'fp32': dict(amp=False, channels_last=False),
    'AMP': dict(amp=True, channels_last=False),
    'AMP, channels last': dict(amp=True, channels_last=True),
}
KINDS = (
    'plain',
    'plain, again',
    'PWS',
    'PWS, kernel',
    'PWS, fused',
    'BN',
    'frozen BN',
    'GN',
    'SN',
    'IN',
    'WN',
    'ConvWS and GN',
    'ScaledWS',
)
GOALS = (  # what PWS is compared with, and how much faster it should train
    ('training', 'BN', 1.15),
    ('training', 'GN', 1.8),
    ('training', 'ScaledWS', 1.0),
)
CIFAR_KINDS = ('PWS', 'BN', 'GN')
MEAN = (125.307, 122.961, 113.8575)
STD = (51.5865, 50.847, 51.255)


class Case(NamedTuple):
    """Network, batch sizes, and height and width of the images in pixels."""

    part: str
    batch_sizes: Sequence[int]
    image_size: tuple[int, int]


CASES = {
    'ResNet-50': Case('ResNet-50', [64], (224, 224)),
    'VGG-16-SSD320': Case('VGG-16-SSD320', [8, 16], (320, 320)),
    'Mask R-CNN': Case('Mask R-CNN R-50-FPN', [2, 4], (800, 1333)),
}
TOY_CASES = {
    'ResNet-50': Case('ResNet-50', [2], (32, 32)),
    'VGG-16-SSD320': Case('VGG-16-SSD320', [1], (320, 320)),
    'Mask R-CNN': Case('Mask R-CNN R-50-FPN', [1], (64, 96)),
}
TOY_KINDS = ('plain', 'PWS', 'PWS, kernel', 'PWS, fused')


def make_kinds() -> dict[str, Any]:
    """The kinds of speed.py, frozen BN and ScaledWS."""
    import comparison as speed
    import torch
    import torch.nn.functional as F
    from kinds import Kind, with_bias
    from torch import Tensor, nn

    from pws_mmdet.layers import ReparamConv2d

    class ScaledWSConv2d(ReparamConv2d):
        """A convolution with scaled weight standardization.

        Its filters are gain * (W - E) / sqrt(n Var + eps), with a trained gain for
        each filter of n weights, which starts at 1.

        Source: Brock et al. 2021, "Characterizing signal propagation to close the
        performance gap in unnormalized ResNets", equation (2).
        """

        eps = 1e-4

        def __init__(self, *args, **kwargs) -> None:
            super().__init__(*args, **kwargs)
            self.gain = nn.Parameter(torch.ones(self.out_channels))

        def reset_parameters(self) -> None:
            super().reset_parameters()
            nn.init.kaiming_normal_(self.weight)

        def effective_weight(self) -> Tensor:
            # sqrt(n Var + eps) = sqrt(n) sqrt(Var + eps / n), by the kernel that PWS
            # uses
            n = self.weight[0].numel()
            w = F.group_norm(
                self.weight.float().view(1, self.out_channels, n),
                self.out_channels,
                self.gain * n**-0.5,
                eps=self.eps / n,
            )
            return w.view(self.weight.shape).to(self.weight.dtype)

    kinds = speed.make_kinds()
    kinds['frozen BN'] = kinds['BN']._replace(
        norm_cfg=dict(type='BN', requires_grad=False)
    )
    kinds['PWS, kernel'] = kinds['PWS']
    kinds['ScaledWS'] = Kind(with_bias('BenchmarkScaledWS', ScaledWSConv2d))
    return kinds


def prepare(contender: Any, frozen: bool, amp: bool) -> Any:
    """Let a contender build on its device, which is faster, and infer under autocast.

    Before each step it turns the Triton kernel on or off, as its name says.

    Args:
        contender: Of speed.py's.
        frozen: Its BN is frozen.
        amp: Mixed precision.
    """
    import torch
    from torch.nn.modules.batchnorm import _BatchNorm

    from pws_mmdet.layers.filter_kernel import use_filter_kernel

    build, run = contender.build, contender.run
    prepare_step = contender.prepare

    def prepare_with_kernel() -> None:
        use_filter_kernel(contender.name == 'PWS, kernel')
        prepare_step()

    def build_fast(device: torch.device, *args) -> None:
        try:
            with torch.device(device):
                build(device, *args)
        except Exception:
            if device.type == 'cpu':
                raise
            build(device, *args)
        for module in contender.model.modules():
            if frozen and isinstance(module, _BatchNorm):
                module.eval()

    def run_under_autocast() -> Any:
        with torch.autocast(contender.device.type, torch.float16):
            return run()

    contender.build = build_fast
    contender.prepare = prepare_with_kernel
    if amp and contender.inference:
        contender.run = run_under_autocast
    return contender


def measure_speed(
    name: str,
    out: Path,
    budget: float,
    toy: bool,
    chosen: Sequence[str] | None = None,
    inference_too: bool = True,
) -> None:
    """Measure a network in all settings, and write each as soon as it is there.

    Args:
        name: Of the case.
        out: The file to write.
        budget: Seconds for all of it.
        toy: Small images, few kinds, two steps; on a CPU.
        chosen: The kinds to compare; by default all.
        inference_too: Measure inference besides training.
    """
    end = perf_counter() + budget
    import comparison as speed
    import torch
    from device import describe_machine
    from mmengine.logging import MMLogger

    from pws_mmdet.layers.filter_kernel import use_filter_kernel

    MMLogger.get_instance('speed', log_level='WARNING')
    speed.MIN_ROUNDS = 1 if toy else 4
    device = torch.device('cpu' if toy else 'cuda')
    torch.backends.cuda.matmul.allow_tf32 = True
    torch.backends.cudnn.allow_tf32 = True
    torch.backends.cudnn.benchmark = True
    case = (TOY_CASES if toy else CASES)[name]
    kinds = make_kinds()
    settings = ['fp32'] if toy else ['AMP', 'fp32', 'AMP, channels last']
    plan = [
        (batch_size, setting, inference)
        for batch_size in case.batch_sizes
        for setting in settings
        for inference in ((False, True) if inference_too else (False,))
    ]
    everything = chosen is None
    if everything:
        chosen = TOY_KINDS if toy and name != 'ResNet-50' else KINDS
    # what matters most comes first: small batches, and the first of the settings
    plan.sort(key=lambda p: case.batch_sizes.index(p[0]) + settings.index(p[1]))
    report: dict[str, Any] = dict(
        part=name, machine=describe_machine(device), results=[], not_measured=[]
    )
    if name == 'ResNet-50':
        report.update(look_at_filters(case, device, 1e-3 if toy else 1.0))
        write_json(report, out)
    longest = 0.0
    for i, (batch_size, setting, inference) in enumerate(plan):
        left = end - perf_counter()
        if left < 0.8 * longest:
            report['not_measured'].append([batch_size, setting, inference])
            continue
        switches = SETTINGS[setting]
        start = perf_counter()
        contenders = [
            prepare(
                speed.PARTS[case.part].make(
                    kind, kinds[kind], batch_size, case.image_size[0], inference
                ),
                kind == 'frozen BN',
                switches['amp'],
            )
            for kind in chosen
            if inference or not kinds[kind].fuse
        ]
        for contender in contenders:
            contender.image_size = case.image_size
        rows = speed.compare(
            contenders,
            inference,
            1 if toy else 2,  # rounds to warm up
            1e-3 if toy else max(1.0, 0.5 * left / (len(plan) - i)),
            device,
            speed.NUM_BOXES,
            switches['amp'],
            0,
            torch.channels_last
            if switches['channels_last']
            else torch.contiguous_format,
        )
        for row, contender in zip(rows, contenders, strict=True):
            row.update(
                part=name,
                setting=setting,
                inference=inference,
                batch_size=batch_size,
                image_size=list(case.image_size),
                error=contender.error,
            )
            if row['error'] is None:
                row['images_per_second'] = contender.images_per_second()
                row['speed'] = {  # over that of each other kind, round by round
                    other.name: contender.ratio(other)
                    for other in contenders
                    if other.error is None
                }
        report['results'] += rows
        del contenders, contender
        if device.type == 'cuda':
            torch.cuda.empty_cache()
        longest = max(longest, perf_counter() - start)
        write_json(report, out)
        print(
            f'{name}, {setting}, {"inference" if inference else "training"}, '
            f'{batch_size}: {perf_counter() - start:.0f} s',
            *(f'{r["kind"]}: {r["error"]}' for r in rows if r['error']),
            sep='\n  ',
            flush=True,
        )
    use_filter_kernel(False)
    if name == 'ResNet-50' and everything:
        report.update(look_closer(case, device, amp=not toy))
    write_json(report, out)


def look_closer(case: Case, device: Any, amp: bool) -> dict[str, Any]:
    """What standardizing all filters takes alone, and each operator of a step."""
    import comparison as speed
    import torch

    try:
        args = (device, speed.NUM_BOXES, amp, 0, torch.contiguous_format)
        size = case.batch_sizes[0], case.image_size[0]
        return dict(
            floor=speed.measure_floor(case.part, device, 1.0),
            profile=speed.measure_profile(case.part, *size, 2, 1.0, *args),
        )
    except Exception as e:  # what is measured is worth more than this
        print(f'no profile: {e!r}', flush=True)
        return {}


def look_at_filters(case: Case, device: Any, seconds: float) -> dict[str, Any]:
    """What all filters and their gradients alone take, with and without the kernel.

    Nothing else happens in such a step. Under autocast the filters become fp16.

    Args:
        case: Names the network.
        device: Where to compute.
        seconds: For each of fp32 and autocast.

    Returns:
        Median milliseconds of a step, those in which the CPU launches it and those in
        which the GPU works; and the number of kernels.
    """
    import comparison as speed
    import torch
    from torch import Tensor

    from pws_mmdet.layers import ReparamConv2d
    from pws_mmdet.layers.filter_kernel import use_filter_kernel

    def synchronize() -> None:
        if device.type == 'cuda':
            torch.cuda.synchronize(device)

    def step(amp: bool) -> None:
        with torch.autocast(device.type, torch.float16, enabled=amp):
            made = [conv.filters_to_convolve_with() for conv in convs]
        if amp:  # what is not in fp16 yet is converted by autocast
            made = [w.half() for w in made]
        torch.autograd.backward(made, half_grads if amp else grads)
        for conv in convs:
            conv.weight.grad = conv.alpha.grad = None

    def clock(kernel: bool, amp: bool) -> tuple[float, float]:
        use_filter_kernel(kernel)
        synchronize()
        start = perf_counter()
        step(amp)
        launched = perf_counter()
        synchronize()
        return perf_counter() - start, launched - start

    try:
        contender = speed.PARTS[case.part].make(
            '', make_kinds()['PWS'], 1, case.image_size[0], False
        )
        contender.build(device, 1, False, 0, torch.contiguous_format)
        convs = [m for m in contender.model.modules() if isinstance(m, ReparamConv2d)]
        grads: list[Tensor] = [torch.randn_like(conv.weight) for conv in convs]
        half_grads = [g.half() for g in grads]
        rows = []
        for amp in (False, True):
            times: dict[bool, list] = {False: [], True: []}
            for i in speed.count_rounds(3, seconds):
                for kernel, own in times.items():
                    pair = clock(kernel, amp)
                    if i >= 3:
                        own.append(pair)
            for kernel, own in times.items():
                wall, launch = map(statistics.median, zip(*own, strict=True))
                row = dict(kernel=kernel, amp=amp, rounds=len(own), layers=len(convs))
                row.update(ms=1e3 * wall, launch_ms=1e3 * launch)
                rows.append(row)
                if device.type == 'cuda':
                    row.update(gpu_work(lambda k=kernel, a=amp: clock(k, a)))
                print(row, flush=True)
        return dict(filters=rows)
    except Exception as e:
        print(f'no times of the filters alone: {e!r}', flush=True)
        return {}
    finally:
        use_filter_kernel(False)


def gpu_work(step: Callable) -> dict[str, float]:
    """Milliseconds in which the GPU works in a step, and how many kernels it runs."""
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CUDA]) as profiler:
        step()
    events = [e for e in profiler.key_averages() if e.self_device_time_total]
    return dict(
        gpu_ms=sum(e.self_device_time_total for e in events) / 1e3,
        kernels=sum(e.count for e in events),
    )


def read_images(path: Path, split: str, decode: Callable) -> tuple[list, list[int]]:
    """Images (32, 32, 3) and labels of a zip file with SPLIT/CLASS/NUMBER.jpg."""
    with zipfile.ZipFile(path) as archive:
        names = [n for n in archive.namelist() if n.startswith(f'{split}/')]
        names = sorted(n for n in names if not n.endswith('/'))
        if not names:
            raise ValueError(f'{path} has no {split}/CLASS/NUMBER.jpg')
        classes = sorted({n.split('/')[1] for n in names})
        labels = [classes.index(n.split('/')[1]) for n in names]
        return [decode(archive.read(n)) for n in names], labels


def pack(source: Path, target: Path, images: int) -> None:
    """Copy as many training images, and a sixth of that to test, evenly by class."""
    counts: dict[str, int] = {}
    with zipfile.ZipFile(source) as archive, zipfile.ZipFile(target, 'w') as small:
        for name in sorted(archive.namelist()):
            folder = name.rpartition('/')[0]
            if name.endswith('/'):
                continue
            wanted = images // 10 if folder.startswith('train') else images // 60
            counts[folder] = counts.get(folder, 0) + 1
            if counts[folder] <= wanted:
                small.writestr(name, archive.read(name))


def train_cifar(kind: str, data: Path, out: Path, budget: float, toy: bool) -> None:
    """Train ResNet-20 for some seconds and write its accuracy.

    Args:
        kind: PWS, BN or GN.
        data: Zip file of JPEG images.
        out: The file to write.
        budget: Seconds of the training.
        toy: On a CPU.
    """
    import numpy as np
    import torch
    import torch.nn.functional as F
    from device import describe_machine
    from mmengine.logging import MMLogger
    from PIL import Image
    from torch import Tensor, nn

    from pws_mmdet import PWSConv2d
    from pws_mmdet.models import PWSCifarResNet

    device = torch.device('cpu' if toy else 'cuda')
    torch.backends.cudnn.benchmark = True
    torch.manual_seed(0)
    MMLogger.get_instance('cifar', log_level='WARNING')

    def decode(content: bytes) -> Any:
        return np.asarray(Image.open(io.BytesIO(content)).convert('RGB'))

    def load(split: str) -> tuple[Tensor, Tensor]:
        images, labels = read_images(data, split, decode)
        x = torch.from_numpy(np.stack(images)).to(device).permute(0, 3, 1, 2)
        mean, std = (torch.tensor(v, device=device).view(-1, 1, 1) for v in (MEAN, STD))
        x = ((x - mean) / std).contiguous(memory_format=torch.channels_last)
        return x, torch.tensor(labels, device=device)

    x, labels = load('train')
    test_x, test_labels = load('test')
    cfg = dict(
        PWS=dict(),
        BN=dict(conv_cfg=dict(type='Conv2d'), norm_cfg=dict(type='BN')),
        GN=dict(conv_cfg=dict(type='Conv2d'), norm_cfg=dict(type='GN', num_groups=8)),
    )[kind]
    backbone = PWSCifarResNet(20, **cfg)
    backbone.init_weights()
    head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10))
    model = nn.ModuleList([backbone, head])
    model.to(device, memory_format=torch.channels_last)

    def forward(images: Tensor) -> Tensor:
        with torch.autocast(device.type, torch.bfloat16, enabled=not toy):
            return head(backbone(images)[0]).float()

    def augment(images: Tensor) -> Tensor:
        """Crops of padded images, half of them flipped."""
        n = len(images)
        padded = F.pad(images, (4, 4, 4, 4)).permute(0, 2, 3, 1)
        offsets = torch.randint(9, (2, n, 1), device=device)
        line = torch.arange(32, device=device)
        rows, columns = offsets + line
        flipped = torch.rand(n, 1, device=device) < 0.5
        columns = torch.where(flipped, columns.flip(1), columns)
        first = torch.arange(n, device=device)[:, None, None]
        crops = padded[first, rows[:, :, None], columns[:, None, :]]
        return crops.permute(0, 3, 1, 2)

    def batches() -> Iterator[Tensor]:
        order = torch.randperm(len(x), device=device)
        size = min(128, len(x))
        for i in range(0, len(x) - size + 1, size):
            yield order[i : i + size]

    def set_alpha(conv: PWSConv2d, inputs: Any, y: Tensor) -> Tensor:
        """As PWSAlphaInitHook does."""
        alpha = (2 / y.float().var()).sqrt()
        conv.alpha.data.fill_(alpha)
        return y * alpha

    hooks = [
        m.register_forward_hook(set_alpha)
        for name, m in backbone.named_modules()
        if isinstance(m, PWSConv2d)
        and not (name.startswith('layer') and name.endswith(('.conv2', '.conv3')))
    ]
    with torch.no_grad():
        forward(x[:512])
    for hook in hooks:
        hook.remove()

    named = dict(model.named_parameters())
    alphas = [p for name, p in named.items() if name.endswith('.alpha')]
    others = [p for name, p in named.items() if not name.endswith('.alpha')]
    groups = [dict(params=others), dict(params=alphas, weight_decay=0.0)]
    optimizer = torch.optim.SGD(
        [group for group in groups if group['params']],
        lr=0.1,
        momentum=0.9,
        weight_decay=5e-4,
    )

    @torch.no_grad()
    def test() -> float:
        model.eval()
        right = sum(
            int((forward(a).argmax(1) == b).sum())
            for a, b in zip(test_x.split(1000), test_labels.split(1000), strict=True)
        )
        model.train()
        return 100 * right / len(test_x)

    model.train()
    epochs, steps, losses = 0, 0, []
    start = perf_counter()
    over = False
    while not over:
        total = torch.zeros((), device=device)
        count = 0
        for chosen in batches():
            if steps % 20 == 0:  # the clock of the device, not of its queue
                if device.type == 'cuda':
                    torch.cuda.synchronize()
                done = (perf_counter() - start) / budget
                over = done >= 1 and epochs > 0
                if over:
                    break
                for group in optimizer.param_groups:
                    group['lr'] = 0.1 * 0.1 ** ((done >= 0.5) + (done >= 0.75))
            loss = F.cross_entropy(forward(augment(x[chosen])), labels[chosen])
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
    seconds = perf_counter() - start
    report = dict(
        part='cifar',
        kind=kind,
        machine=describe_machine(device),
        images=len(x),
        test_images=len(test_x),
        epochs=round(steps / max(1, len(x) // min(128, len(x))), 2),
        seconds=seconds,
        steps_per_second=steps / seconds,
        loss=losses[-1] if losses and math.isfinite(losses[-1]) else None,
        accuracy=test(),
    )
    write_json(report, out)
    print(json.dumps(report), flush=True)


def write_json(report: Any, path: Path) -> None:
    write_lines([report], path)


def write_lines(records: list[Any], path: Path) -> None:
    """Write a line of JSON for each record."""
    part = path.with_name(f'{path.name}.partial')
    part.write_text(
        ''.join(json.dumps(round_numbers(record)) + '\n' for record in records)
    )
    part.replace(path)


def round_numbers(value: Any) -> Any:
    """Five digits are more than anything here is worth; JSON knows no NaN."""
    if isinstance(value, dict):
        return {key: round_numbers(part) for key, part in value.items()}
    if isinstance(value, list):
        return [round_numbers(part) for part in value]
    if isinstance(value, float):
        return float(f'{value:.5g}') if math.isfinite(value) else None
    return value


def cell(row: dict[str, Any] | None, what: str, plain: dict[str, Any] | None) -> str:
    if row is None:
        return ''
    if row['error'] is not None:
        return row['error'].partition(':')[0]
    if what == 'memory':
        text = f'{row["peak_mib"] / 1024:.2f} GiB'
        if plain and plain['error'] is None:
            text += f' ({row["peak_mib"] / plain["peak_mib"]:.2f})'
        return text
    ratio = row['speed'].get('plain')
    text = f'{row["images_per_second"]:.0f}'
    if row['images_per_second'] < 100:
        text = f'{row["images_per_second"]:.1f}'
    return text + (f' ({ratio:.3f})' if ratio else '')


def table(rows: list[dict[str, Any]], what: str) -> str:
    columns = list(dict.fromkeys((r['batch_size'], r['setting']) for r in rows))
    columns.sort(key=lambda c: (c[0], list(SETTINGS).index(c[1])))
    cells = {(r['kind'], r['batch_size'], r['setting']): r for r in rows}
    lines = ['| | ' + ' | '.join(f'{b} x, {s}' for b, s in columns) + ' |']
    lines.append('|---' * (len(columns) + 1) + '|')
    for kind in dict.fromkeys(r['kind'] for r in rows):
        texts = [
            cell(cells.get((kind, *c)), what, cells.get(('plain', *c))) for c in columns
        ]
        lines.append(f'| {kind} | {" | ".join(texts)} |')
    return '\n'.join(lines) + '\n'


def goals(rows: list[dict[str, Any]]) -> list[str]:
    """A line for each setting: how PWS stands beside the others."""
    lines = []
    for key in dict.fromkeys((r['part'], r['batch_size'], r['setting']) for r in rows):
        own = {
            (r['kind'], r['inference']): r
            for r in rows
            if (r['part'], r['batch_size'], r['setting']) == key and r['error'] is None
        }
        texts = []
        if pws := own.get(('PWS', False)):
            texts += reached(pws)
            for other in ('BN', 'GN'):
                if row := own.get((other, False)):
                    texts.append(
                        f'{pws["peak_mib"] / row["peak_mib"]:.2f} of the memory of '
                        f'{other}'
                    )
        if fused := own.get(('PWS, fused', True)):
            if ratio := fused['speed'].get('plain'):
                texts.append(f'fused inference {ratio:.3f} of plain')
        if pws := own.get(('PWS, kernel', False)):
            texts.append(f'with the kernel {", ".join(reached(pws))}')
        part, batch_size, setting = key
        lines.append(f'* {part}, {batch_size} images, {setting}: {"; ".join(texts)}.')
    return lines


def reached(row: dict[str, Any]) -> list[str]:
    return [
        f'{ratio:.2f} of {other} (goal {least})'
        for _, other, least in GOALS
        if (ratio := row['speed'].get(other))
    ]


def filters_table(rows: list[dict[str, Any]]) -> str:
    lines = [
        f'**All {rows[0]["layers"]} filters and their gradients alone (ms)**\n',
        '| | step | launches on the CPU | work on the GPU | kernels |',
        '|---' * 5 + '|',
    ]
    for row in rows:
        name = 'kernel' if row['kernel'] else 'group norm'
        name += ', AMP' if row['amp'] else ', fp32'
        busy, count = row.get('gpu_ms'), row.get('kernels', '')
        busy = '' if busy is None else f'{busy:.2f}'
        lines.append(
            f'| {name} | {row["ms"]:.2f} | {row["launch_ms"]:.2f} | {busy} | {count} |'
        )
    return '\n'.join(lines) + '\n'


def closer_look(part: dict[str, Any]) -> str:
    floor, profile = part['floor'], part['profile']
    lines = [
        f'**{part["part"]}, a training step with PWS, operator by operator (ms)**\n',
        '| | plain | PWS | difference |',
        '|---|---|---|---|',
    ]
    for row in [*profile['operators'], dict(operator='all', ms=profile['ms'])]:
        plain, pws = row['ms']
        name = row['operator'].replace('|', r'\|')[:80]
        lines.append(f'| {name} | {plain:.2f} | {pws:.2f} | {pws - plain:+.2f} |')
    lines.append(
        f'\nStandardizing the {floor["weights_mib"]:.0f} MiB of all {floor["layers"]} '
        f'layers alone takes {floor["ms"]:.2f} ms, and copying them '
        f'{floor["copy_ms"]:.2f} ms.'
    )
    return '\n'.join(lines) + '\n'


def to_markdown(report: dict[str, Any]) -> str:
    blocks = []
    rows = [row for part in report['speed'] for row in part['results']]
    if rows:
        blocks.append('**PWS beside the others**\n\n' + '\n'.join(goals(rows)) + '\n')
    for part in report['speed']:
        for inference in (False, True):
            chosen = [r for r in part['results'] if r['inference'] == inference]
            if not chosen:
                continue
            name = f'{part["part"]}, {"inference" if inference else "training"}'
            height, width = chosen[0]['image_size']
            blocks.append(
                f'**{name}, {height} x {width}: images per second (over plain)**\n\n'
                + table(chosen, 'speed')
            )
            if not inference:
                blocks.append(
                    f'**{name}: peak memory of a step (over plain)**\n\n'
                    + table(chosen, 'memory')
                )
        if 'profile' in part:
            blocks.append(closer_look(part))
        if 'filters' in part:
            blocks.append(filters_table(part['filters']))
        if part['not_measured']:
            texts = [
                f'{b} images, {s}, {"inference" if i else "training"}'
                for b, s, i in part['not_measured']
            ]
            blocks.append(f'Not measured, for want of time: {"; ".join(texts)}.\n')
    if report['cifar']:
        lines = ['| | accuracy | epochs | steps/s | loss | images |', '|---' * 6 + '|']
        for r in report['cifar']:
            loss = 'not finite' if r['loss'] is None else f'{r["loss"]:.3f}'
            lines.append(
                f'| {r["kind"]} | {r["accuracy"]:.2f} | {r["epochs"]:.0f} '
                f'| {r["steps_per_second"]:.0f} | {loss} | {r["images"]} |'
            )
        blocks.append(
            f'**CIFAR-10, ResNet-20, {report["cifar"][0]["seconds"]:.0f} seconds, side '
            'by side on one GPU**\n\n' + '\n'.join(lines) + '\n'
        )
    if machine := report['machine']:
        versions = ', '.join(f'{k} {v}' for k, v in machine['versions'].items())
        blocks.append(
            f'* {machine["gpu"] or machine["cpu"]}; {machine["date"][:10]}.\n'
            f'* Versions: {versions}.\n'
        )
    for key, value in report['notes'].items():
        blocks.append(f'* {key}: {value}\n')
    return '\n'.join(blocks)


def read_report(path: Path) -> dict[str, Any]:
    """Read the lines that ``report`` wrote."""
    records = [json.loads(line) for line in path.read_text().splitlines()]
    *parts, noted = records
    return dict(
        machine=parts[0]['machine'] if parts else None,
        notes=noted['notes'],
        speed=[part for part in parts if part['part'] != 'cifar'],
        cifar=[part for part in parts if part['part'] == 'cifar'],
    )


def make_report(parts: list[Path], out: Path, markdown: Path, notes: list[str]) -> None:
    """Put the files of the parts together; those that are missing are left out."""
    found = []
    for path in parts:
        try:
            found.append(json.loads(path.read_text()))
        except (OSError, ValueError) as e:
            print(f'{path} is left out: {e}', file=sys.stderr)
    noted = dict(part='notes', notes=dict(note.split('=', 1) for note in notes))
    write_lines([*found, noted], out)
    text = to_markdown(read_report(out))
    markdown.write_text(text)
    print(text, end='')


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest='command', required=True)
    speed = commands.add_parser('speed', help='measure a network')
    speed.add_argument('name', choices=CASES)
    speed.add_argument('--kinds', nargs='+', choices=KINDS, help='by default all')
    speed.add_argument('--training', action='store_true', help='no inference')
    cifar = commands.add_parser('cifar', help='train ResNet-20 on CIFAR-10')
    cifar.add_argument('name', choices=CIFAR_KINDS)
    cifar.add_argument('--data', type=Path, required=True, help='zip file')
    for command, seconds in ((speed, 60.0), (cifar, 100.0)):
        command.add_argument('--out', type=Path, required=True, help='JSON file')
        command.add_argument('--budget', type=float, default=seconds, help='seconds')
        command.add_argument('--toy', action='store_true', help='tiny, on a CPU')
    packing = commands.add_parser('pack', help='a part of a zip file of CIFAR-10')
    packing.add_argument('source', type=Path)
    packing.add_argument('target', type=Path)
    packing.add_argument('--images', type=int, default=24000, help='for training')
    report = commands.add_parser('report', help='put parts together')
    report.add_argument('parts', type=Path, nargs='*')
    report.add_argument('--out', type=Path, required=True, help='a line for each part')
    report.add_argument('--markdown', type=Path, required=True, help='tables')
    report.add_argument('--notes', nargs='*', default=[], metavar='KEY=VALUE')
    args = parser.parse_args()
    if args.command == 'speed':
        measure_speed(
            args.name, args.out, args.budget, args.toy, args.kinds, not args.training
        )
    elif args.command == 'cifar':
        train_cifar(args.name, args.data, args.out, args.budget, args.toy)
    elif args.command == 'pack':
        pack(args.source, args.target, args.images)
    else:
        make_report(args.parts, args.out, args.markdown, args.notes)


if __name__ == '__main__':
    main()
