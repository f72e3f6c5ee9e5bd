"""Export a detector to ONNX: raw pictures in, detections out.

PWS convolutions become plain ones whose weights are constants. The graph normalizes
and pads the pictures, and does all of MMDetection's post-processing.

  input   images  float32 (N, 3, H, W), 0 to 255, resized as in the config's test
                  pipeline, channels as the data_preprocessor expects them (as a
                  rule BGR). Pictures of a batch have one size: boxes are clipped to
                  it, also where it comes from padding of your own.
  output  boxes   float32 (N, D, 4), x1, y1, x2, y2 in pixels of the input
          scores  float32 (N, D), the best first
          labels  int64 (N, D)
          masks   float32 (N, D, h, w), of Mask R-CNN: probabilities, on a grid that
                  fills the box

D is the max_per_img of the config. Where a picture has fewer detections the rest has
label -1, score 0 and box 0. N, H and W are free, unless --shape fixes H and W.

Opset 18, IR version 10: ONNX Runtime 1.18 or later.
"""

import argparse
import logging
import os
import warnings
from importlib import import_module
from pathlib import Path

import cv2
import mmcv
import numpy as np
import torch
from mmdet.structures import DetDataSample
from mmengine.structures import InstanceData
from packaging.version import Version
from torch import nn

from pws_mmdet import fuse_pws
from pws_mmdet.convert.checkpoint import check_finite, check_kind, check_out, first_of
from pws_mmdet.convert.checkpoint import load_weights as read_weights
from pws_mmdet.utils.config import ConfigOptions, build_model, read_config

OPSET = 18
TORCH = '2.7'  # whose exporter takes a custom_translation_table
INSTALL = "pip install -e '.[onnx]'"
LARGEST_SIDE = 2**15  # pixels
# How far ONNX Runtime may be from MMDetection: pixels, fraction of the best score,
# probability. Its convolutions round differently.
TOLERANCE = dict(boxes=0.1, scores=1e-3, masks=1e-2)


def check_extra() -> None:
    """Raise an ImportError that says what to install, if something is missing."""
    if Version(torch.__version__) < Version(TORCH):
        raise ImportError(f'The export needs torch>={TORCH}, not {torch.__version__}')
    for name in ('onnx', 'onnxscript', 'onnxruntime'):
        try:
            import_module(name)
        except ImportError as e:
            raise ImportError(
                'The export needs onnx, onnxscript and onnxruntime, and importing '
                f'{name} failed ({e}): {INSTALL}'
            ) from e


def load_weights(model: nn.Module, checkpoint: str | Path) -> None:
    """Load a checkpoint that has each weight of the model, and no other.

    Raises:
        FileNotFoundError: If there is no such checkpoint.
        RuntimeError: If it is damaged or holds more than data.
        ValueError: If it does not fit the model, or a weight is not finite.
    """
    weights = read_weights(checkpoint)
    check_finite(weights, checkpoint, model)
    try:
        check_kind(model, weights)
    except ValueError as e:
        raise ValueError(f'{checkpoint} does not fit the config: {e}') from None
    problems = []
    try:
        result = model.load_state_dict(weights, strict=False)
    except RuntimeError as e:  # other shapes, a line each
        problems = [first_of([line.strip() for line in str(e).splitlines()[1:]])]
    else:
        if result.missing_keys:
            problems.append(f'it lacks {first_of(result.missing_keys)}')
        if result.unexpected_keys:
            problems.append(f'the model has no {first_of(result.unexpected_keys)}')
    if problems:
        raise ValueError(f'{checkpoint} does not fit the config: {"; ".join(problems)}')


def export(
    network: nn.Module,
    path: str | Path,
    outputs: list[str],
    size: tuple[int, int],
    fixed_size: bool = False,
    least_score: float | None = None,
) -> None:
    """Write a network of pictures as an ONNX file.

    Args:
        network: Takes float32 (N, 3, H, W); in evaluation mode.
        path: The file, which is overwritten.
        outputs: Names of what it returns.
        size: Height and width that it is traced with.
        fixed_size: The graph accepts these alone; otherwise they must leave more than
            one value in each direction of every map, as torch.export takes a 1 for a
            constant.
        least_score: The score threshold, which the network takes as a second input. In
            the file it is a constant, which :func:`set_least_score` replaces.

    Raises:
        RuntimeError: If the network cannot be traced.
    """
    from pws_mmdet.deploy import TRANSLATIONS

    names = {0: 'batch'} if fixed_size else {0: 'batch', 2: 'height', 3: 'width'}
    free = dict.fromkeys(names, torch.export.Dim.DYNAMIC)
    inputs = dict(images=torch.zeros(2, 3, *size))
    if least_score is not None:
        inputs['least_score'] = torch.tensor(float(least_score))
    fixed = (None,) * (len(inputs) - 1)
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter('ignore')
        try:
            program = torch.export.export(
                network, tuple(inputs.values()), dynamic_shapes=(free, *fixed)
            )
        except Exception as e:  # of many types
            hint = '' if fixed_size else ' With --shape the size is fixed.'
            raise RuntimeError(f'torch.export cannot trace it: {e}{hint}') from e
        onnx_program = torch.onnx.export(
            program,
            dynamo=True,
            input_names=list(inputs),
            output_names=outputs,
            dynamic_shapes=(names, *fixed),
            opset_version=OPSET,
            custom_translation_table=TRANSLATIONS,
            verbose=False,
        )
    onnx_program.save(str(path))
    if least_score is not None:
        set_least_score(path, least_score)


def set_least_score(path: str | Path, value: float) -> None:
    """Set the score threshold of a file that :func:`export` wrote."""
    import onnx

    model = onnx.load(str(path))
    for values in (model.graph.input, model.graph.initializer):
        for old in [v for v in values if v.name == 'least_score']:
            values.remove(old)
    constant = onnx.numpy_helper.from_array(np.float32(value), 'least_score')
    model.graph.initializer.append(constant)
    onnx.save(model, str(path))


def trace_size(model: nn.Module) -> tuple[int, int]:
    """A size that leaves the coarsest map more than one value, and is not square."""
    head = model.rpn_head if hasattr(model, 'rpn_head') else model.bbox_head
    stride = max(max(strides) for strides in head.prior_generator.strides)
    return 3 * stride, 4 * stride


@torch.no_grad()
def predict(model: nn.Module, pictures: np.ndarray) -> list[InstanceData]:
    """What MMDetection detects in (N, H, W, 3) pictures, uint8."""
    size = pictures.shape[1:3]
    meta = dict(img_shape=size, ori_shape=size, scale_factor=(1.0, 1.0))
    inputs = [torch.from_numpy(p.transpose(2, 0, 1).copy()) for p in pictures]
    samples = [DetDataSample(metainfo=meta) for _ in inputs]
    samples = model.test_step(dict(inputs=inputs, data_samples=samples))
    return [sample.pred_instances for sample in samples]


def match(
    boxes: np.ndarray,
    scores: np.ndarray,
    labels: np.ndarray,
    expected: InstanceData,
    least: float = 0.0,
) -> tuple[list[tuple[int, int]], int]:
    """Pair the detections of a picture with those that are expected.

    Args:
        boxes, scores, labels: (D, 4), (D,), (D,); label -1 for none.
        expected: MMDetection's.
        least: Below this score a detection may be without a partner: another one may
            have taken its place by a rounding error.

    Returns:
        Pairs of indices, and the number of detections, of both, without a partner.
    """
    theirs = [expected[k].cpu().numpy() for k in ('bboxes', 'scores', 'labels')]
    tolerance = TOLERANCE['scores'] * theirs[1].max(initial=0)
    distance = np.abs(boxes[:, None] - theirs[0][None]).max(-1)
    gap = np.abs(scores[:, None] - theirs[1][None])
    impossible = (
        (labels[:, None] != theirs[2][None])
        | (distance > TOLERANCE['boxes'])
        | (gap > tolerance)
    )
    distance[impossible] = np.inf
    pairs = []
    for j in range(len(theirs[1])):
        i = distance[:, j].argmin()
        if np.isfinite(distance[i, j]):
            pairs.append((int(i), j))
            distance[i] = np.inf
    ours, others = (set(k) for k in zip(*pairs, strict=True)) if pairs else ((), ())
    alone = [s for i, s in enumerate(scores) if labels[i] >= 0 and i not in ours]
    alone += [s for j, s in enumerate(theirs[1]) if j not in others]
    return pairs, sum(s > least + tolerance for s in alone)


def detecting_score(network: nn.Module, batches: list[np.ndarray]) -> float:
    """The least score to verify with, so that something is detected.

    It is the config's where that suffices. If not, about ten detections of the first
    image are above it: a trained detector finds nothing in noise, and two that find
    nothing agree.

    Args:
        network: A ``DeployedDetector``.
        batches: Images, uint8 (N, H, W, 3) each.

    Raises:
        ValueError: If nothing is detected whatever the score.
    """
    least = network.least_score
    if any(len(found) for batch in batches for found in predict(network.model, batch)):
        return least
    network.least_score = 0
    try:
        scores = predict(network.model, batches[0])[0].scores
    finally:
        network.least_score = least
    scores = scores[scores > 0].double()
    if not len(scores):
        raise ValueError(
            'Nothing is detected, whatever the score, so there is nothing to verify: '
            'name an image with --picture, or pass --no-verify.'
        )
    # in the middle of a wide gap, which no rounding error crosses
    start = min(4, len(scores) - 1)
    scores = torch.cat([scores, scores[-1:] / 2])[start : start + 16].log()
    gap = (scores[:-1] - scores[1:]).argmax()
    return float(scores[gap : gap + 2].mean().exp())


def verify(
    path: str | Path,
    network: nn.Module,
    batches: list[np.ndarray],
    least_score: float | None = None,
) -> dict[str, float]:
    """Compare an exported detector in ONNX Runtime with MMDetection.

    Args:
        path: The ONNX file.
        network: The ``DeployedDetector`` that it was made of.
        batches: Pictures, uint8 (N, H, W, 3) each.
        least_score: Set both to this score threshold first.

    Returns:
        The number of detections, and the largest difference of each output.

    Raises:
        ValueError: If they do not detect the same.
    """
    import onnxruntime

    if least_score is not None:
        network.least_score = least_score
        set_least_score(path, least_score)
    session = onnxruntime.InferenceSession(
        str(path), providers=['CPUExecutionProvider']
    )
    result = dict(detections=0, boxes=0.0, scores=0.0)
    for pictures in batches:
        images = pictures.transpose(0, 3, 1, 2).astype(np.float32)
        try:
            outputs = session.run(None, dict(images=images))
        except Exception as e:  # ONNX Runtime's own types
            raise ValueError(
                f'ONNX Runtime fails on pictures of {images.shape[3]}x'
                f'{images.shape[2]}: {e} With --shape the size is fixed.'
            ) from e
        with torch.no_grad():
            maps = network.maps(torch.from_numpy(images))
        for n, expected in enumerate(predict(network.model, pictures)):
            boxes, scores, labels, *masks = (output[n] for output in outputs)
            least = scores[-1] if labels[-1] >= 0 else network.least_score
            pairs, alone = match(boxes, scores, labels, expected, least)
            if alone:
                raise ValueError(
                    f'ONNX Runtime and MMDetection do not detect the same: {alone} '
                    f'detections differ, {len(pairs)} agree, in a picture of '
                    f'{pictures.shape[2]}x{pictures.shape[1]}. Nothing was written.'
                )
            if not pairs:
                continue
            ours, others = (list(k) for k in zip(*pairs, strict=True))
            theirs = dict(
                boxes=expected.bboxes[others],
                scores=expected.scores[others],
            )
            found = dict(boxes=boxes[ours], scores=scores[ours])
            if masks:
                one = tuple(m[n : n + 1] for m in maps)
                found['masks'] = masks[0][ours]
                theirs['masks'] = network.masks(
                    one, expected.bboxes[None, others], expected.labels[None, others]
                )[0].detach()
            result['detections'] += len(pairs)
            for name, values in found.items():
                difference = float(np.abs(values - theirs[name].numpy()).max())
                result[name] = max(result.get(name, 0.0), difference)
    if result.get('masks', 0) > TOLERANCE['masks']:
        raise ValueError(
            f'ONNX Runtime and MMDetection differ by {result["masks"]:.2g} in the '
            'probabilities of masks. Nothing was written.'
        )
    return result


def batches_to_verify(
    picture: str | None, size: tuple[int, int], fixed_size: bool
) -> list[np.ndarray]:
    """Pictures to verify with: one from a file, or random ones of two sizes."""
    if picture is not None:
        if not Path(picture).is_file():
            raise FileNotFoundError(f'There is no picture {picture}.')
        try:
            pixels = mmcv.imread(picture)
        except cv2.error:  # an empty file
            pixels = None
        if pixels is None:
            raise ValueError(f'{picture} is not a picture that OpenCV can read')
        if fixed_size:
            pixels = mmcv.imresize(pixels, size[::-1])
        return [pixels[None]]
    random = np.random.RandomState(0)
    sizes = [size] if fixed_size else [size, (size[0] + 21, size[1] - 27)]
    return [
        random.randint(0, 256, (n, *hw, 3), dtype=np.uint8)
        for n, hw in zip((2, 1), sizes, strict=False)
    ]


def convert(
    config: str | Path,
    checkpoint: str | Path,
    out: str | Path,
    shape: tuple[int, int] | None = None,
    picture: str | None = None,
    verification: bool = True,
    cfg_options: dict | None = None,
) -> dict[str, float] | None:
    """Export the detector of a config and a checkpoint.

    Args:
        config: A config file; its code is run.
        checkpoint: Weights for it.
        out: The file to write; it must end in .onnx and not exist.
        shape: Height and width of the pictures, if they shall be fixed.
        picture: A picture to verify with, instead of random ones.
        verification: Compare with MMDetection before ``out`` is written.
        cfg_options: Changes to the config, as of MMDetection's programs.

    Returns:
        What :func:`verify` does. If nothing is above the score threshold of the config,
        it is of an export with a lower one, which is its ``least_score``.

    Raises:
        ImportError: If the packages of the extra 'onnx' are missing.
        OSError: If a file cannot be read, or ``out`` exists.
        RuntimeError: If the checkpoint is damaged or holds more than data.
        ValueError: If the arguments do not fit, the detector is not supported, or the
            result does not detect the same.
    """
    check_extra()
    out = check_out(out, '.onnx')
    if shape is not None and not 1 <= min(shape) <= max(shape) <= LARGEST_SIDE:
        raise ValueError(
            f'--shape must be from 1 to {LARGEST_SIDE}, got {shape[0]} {shape[1]}'
        )
    from pws_mmdet.deploy import OUTPUTS, DeployedDetector

    batches = []
    if picture is not None:  # an error of it comes before the long work
        batches = batches_to_verify(picture, shape or (0, 0), shape is not None)
    cfg = read_config(config, cfg_options)
    test_cfg = cfg.model.get('test_cfg')
    parts = [test_cfg]  # of two-stage detectors, one for each
    if isinstance(test_cfg, dict):
        parts += [test_cfg[key] for key in ('rpn', 'rcnn') if key in test_cfg]
    if not all(isinstance(part, dict) for part in parts):
        raise ValueError(f'{config}: model.test_cfg must be a dict, got {test_cfg!r}')
    network = DeployedDetector(build_model(config, cfg))
    load_weights(network.model, checkpoint)
    fuse_pws(network.model, inplace=True)
    size = tuple(shape or trace_size(network.model))
    outputs = list(OUTPUTS[: 4 if network.with_masks else 3])

    out.parent.mkdir(parents=True, exist_ok=True)
    part = out.with_name(f'.{out.name}.{os.getpid()}')
    fixed_size, least = shape is not None, network.least_score
    result = None
    try:
        export(network, part, outputs, size, fixed_size, least)
        if verification:
            batches = batches or batches_to_verify(None, size, fixed_size)
            low = detecting_score(network, batches)
            result = verify(part, network, batches, low)
            if not result['detections']:
                raise ValueError(
                    'No detection of ONNX Runtime and MMDetection could be compared: '
                    'name an image with --picture. Nothing was written.'
                )
            if low != least:
                verify(part, network, batches, least)
                result['least_score'] = low
        part.replace(out)
    finally:
        part.unlink(missing_ok=True)
    return result


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('config', help='of the detector; its code is run')
    parser.add_argument('checkpoint', help='such as epoch_12.pth')
    parser.add_argument('out', help='such as detector.onnx')
    parser.add_argument(
        '--shape',
        nargs=2,
        type=int,
        metavar=('H', 'W'),
        help='fix height and width, for runtimes that want it',
    )
    parser.add_argument(
        '--verify',
        action=argparse.BooleanOptionalAction,
        default=True,
        help='compare the detections with those of MMDetection before OUT is written',
    )
    parser.add_argument(
        '--picture', help='verify with this one (default: random pixels)'
    )
    parser.add_argument(
        '--cfg-options',
        nargs='+',
        action=ConfigOptions,
        help='changes to the config, KEY=VALUE ..., such as those of the training',
    )
    args = parser.parse_args()
    logging.getLogger('torch.onnx').setLevel(logging.ERROR)
    try:
        result = convert(
            args.config,
            args.checkpoint,
            args.out,
            args.shape,
            args.picture,
            args.verify,
            args.cfg_options,
        )
    except (ImportError, OSError, RuntimeError, ValueError) as error:
        parser.error(str(error))
    if result is not None:
        found, low = result.pop('detections'), result.pop('least_score', None)
        print(f'ONNX Runtime and MMDetection agree in {found} detections')
        if low is not None:
            print(
                f'  with a score above {low:.2g}: none is above the score_thr of the '
                'config. With --picture the check is of an image of yours.'
            )
        for name, difference in result.items():
            print(f'  {name:8}largest difference {difference:.2g}')
    print(f'written: {args.out}')


if __name__ == '__main__':
    main()
