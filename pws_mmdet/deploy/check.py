"""Compare the detections of an ONNX file with those of MMDetection."""

from pathlib import Path

import cv2
import mmcv
import numpy as np
import torch
from mmdet.structures import DetDataSample
from mmengine.structures import InstanceData
from torch import Tensor, nn

from .detector import DeployedDetector
from .onnx_file import set_least_score

# The largest differences that are accepted, because the convolutions of ONNX Runtime
# round differently: pixels, a fraction of the best score, a probability.
TOLERANCE = dict(boxes=0.1, scores=1e-3, masks=1e-2)


@torch.no_grad()
def predict(model: nn.Module, images: np.ndarray) -> list[InstanceData]:
    """Run MMDetection's own ``predict`` on images, uint8 (N, H, W, 3)."""
    size = images.shape[1:3]
    meta = dict(img_shape=size, ori_shape=size, scale_factor=(1.0, 1.0))
    inputs = [torch.from_numpy(i.transpose(2, 0, 1).copy()) for i in images]
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
    """Pair the detections of an image with the expected ones.

    Args:
        boxes, scores, labels: (D, 4), (D,), (D,); label -1 means no detection.
        expected: The detections of MMDetection.
        least: A detection with a lower score may be without a partner: after a
            rounding error another detection may take its place.

    Returns:
        Pairs of indices, and the number of detections on both sides that have no
        partner.
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


def compare(
    network: DeployedDetector,
    maps: tuple[Tensor, ...],
    outputs: list[np.ndarray],
    expected: InstanceData,
) -> tuple[int, dict[str, float]]:
    """Compare the detections of ONNX Runtime in one image with MMDetection's.

    Args:
        network: The exported network; it computes the masks of the expected boxes.
        maps: The feature maps of the image, (1, C, h, w).
        outputs: What ONNX Runtime returned for the image.
        expected: The detections of MMDetection.

    Returns:
        The number of detections, and the largest difference of each output.

    Raises:
        ValueError: If a detection of one of them is not a detection of the other.
    """
    boxes, scores, labels, *masks = outputs
    least = scores[-1] if labels[-1] >= 0 else network.least_score
    pairs, alone = match(boxes, scores, labels, expected, least)
    if alone:
        raise ValueError(
            f'ONNX Runtime and MMDetection do not detect the same: {alone} detections '
            f'differ, {len(pairs)} agree'
        )
    if not pairs:
        return 0, {}
    ours, others = (list(k) for k in zip(*pairs, strict=True))
    found = dict(boxes=boxes[ours], scores=scores[ours])
    theirs = dict(boxes=expected.bboxes[others], scores=expected.scores[others])
    if masks:
        found['masks'] = masks[0][ours]
        theirs['masks'] = network.masks(
            maps, expected.bboxes[None, others], expected.labels[None, others]
        )[0].detach()
    return len(pairs), {
        name: float(np.abs(values - theirs[name].numpy()).max())
        for name, values in found.items()
    }


def verify(
    path: str | Path,
    network: DeployedDetector,
    batches: list[np.ndarray],
    least_score: float | None = None,
) -> dict[str, float]:
    """Compare an exported detector in ONNX Runtime with MMDetection.

    Args:
        path: The ONNX file.
        network: The network that was exported.
        batches: Images, uint8 (N, H, W, 3) each.
        least_score: A score threshold that is set in the file and the network first.

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
    for batch in batches:
        images = batch.transpose(0, 3, 1, 2).astype(np.float32)
        size = f'{images.shape[3]}x{images.shape[2]}'
        try:
            outputs = session.run(None, dict(images=images))
        except Exception as e:  # ONNX Runtime has types of its own
            raise ValueError(
                f'ONNX Runtime fails on images of {size}: {e} '
                'With --shape the size is fixed.'
            ) from e
        with torch.no_grad():
            maps = network.maps(torch.from_numpy(images))
        for n, expected in enumerate(predict(network.model, batch)):
            one = tuple(m[n : n + 1] for m in maps)
            try:
                pairs, gaps = compare(network, one, [o[n] for o in outputs], expected)
            except ValueError as e:
                raise ValueError(
                    f'{e}, in an image of {size}. Nothing was written.'
                ) from e
            result['detections'] += pairs
            for name, gap in gaps.items():
                result[name] = max(result.get(name, 0.0), gap)
    if result.get('masks', 0) > TOLERANCE['masks']:
        raise ValueError(
            f'ONNX Runtime and MMDetection differ by {result["masks"]:.2g} in the '
            'probabilities of masks. Nothing was written.'
        )
    return result


def detecting_score(network: DeployedDetector, batches: list[np.ndarray]) -> float:
    """Find a score threshold for the check at which something is detected.

    It is the threshold of the config if there are detections above it. If not, it is a
    lower one, with about ten detections of the first image above it. Without them the
    check would prove nothing: a trained detector finds nothing in noise, and two
    detectors that find nothing agree.

    Args:
        network: The detector.
        batches: Images, uint8 (N, H, W, 3) each.

    Raises:
        ValueError: If nothing is detected at any threshold.
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
            'name an image with --image, or pass --no-verify.'
        )
    # The middle of the widest gap between two scores: no rounding error crosses it.
    start = min(4, len(scores) - 1)
    scores = torch.cat([scores, scores[-1:] / 2])[start : start + 16].log()
    gap = (scores[:-1] - scores[1:]).argmax()
    return float(scores[gap : gap + 2].mean().exp())


def images_to_verify(
    image: str | Path | None, size: tuple[int, int], fixed_size: bool
) -> list[np.ndarray]:
    """Batches of images for the check: uint8, (N, H, W, 3) each.

    Args:
        image: The file of an image. None makes random pixels.
        size: Height and width of the random images.
        fixed_size: All images get this size. Otherwise an image from a file keeps
            its own, and there are random images of a second size.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If OpenCV cannot read it.
    """
    if image is not None:
        if not Path(image).is_file():
            raise FileNotFoundError(f'There is no image {image}.')
        try:
            pixels = mmcv.imread(image)
        except cv2.error:  # an empty file
            pixels = None
        if pixels is None:
            raise ValueError(f'{image} is not an image that OpenCV can read')
        if fixed_size:
            pixels = mmcv.imresize(pixels, size[::-1])
        return [pixels[None]]
    random = np.random.RandomState(0)
    sizes = [size] if fixed_size else [size, (size[0] + 21, size[1] - 27)]
    return [
        random.randint(0, 256, (n, *hw, 3), dtype=np.uint8)
        for n, hw in zip((2, 1), sizes, strict=False)
    ]
