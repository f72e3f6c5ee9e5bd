import json
import shutil

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from mmdet.registry import DATASETS, MODELS
from mmdet.structures import DetDataSample
from mmengine.config import Config
from mmengine.dataset import pseudo_collate
from mmengine.evaluator import Evaluator
from mmengine.registry import METRICS
from mmengine.structures import InstanceData

from pws_mmdet.evaluation import FMeasureMetric

BOX = (0, 0, 10, 10)
SHIFTED = (5, 0, 15, 10)  # IoU 1/3 with BOX, half of its area in BOX
FAR = (50, 50, 60, 60)


def image(pred, gt, ignored=None):
    """Return an image as MMEngine's evaluator passes it to a metric."""

    def pack(objects, *names):
        columns = zip(*objects, strict=True) if objects else [()] * len(names)
        data = dict(zip(names, map(torch.tensor, columns), strict=True))
        return data | dict(bboxes=data['bboxes'].float().view(-1, 4))

    sample = dict(
        pred_instances=pack(pred, 'bboxes', 'labels', 'scores'),
        gt_instances=pack(gt, 'bboxes', 'labels'),
    )
    if ignored is not None:
        sample['ignored_instances'] = pack(ignored, 'bboxes', 'labels')
    return sample


def evaluate(*images, **kwargs):
    metric = FMeasureMetric(**kwargs)
    metric.process(None, images)
    result = metric.evaluate(len(images))
    return tuple(result[f'box/{key}'] for key in ('precision', 'recall', 'f_measure'))


@pytest.mark.parametrize(
    'pred, gt, expected',
    [
        ([(BOX, 0, 0.9)], [(BOX, 0)], (1, 1, 1)),
        ([(BOX, 0, 0.9)], [(BOX, 1)], (0, 0, 0)),
        ([(SHIFTED, 0, 0.9)], [(BOX, 0)], (0, 0, 0)),
        ([(BOX, 0, 0.49)], [(BOX, 0)], (0, 0, 0)),
        ([(BOX, 0, 0.5)], [(BOX, 0)], (1, 1, 1)),
        ([(BOX, 0, 0.9), (FAR, 0, 0.9)], [(BOX, 0)], (1 / 2, 1, 2 / 3)),
        ([(BOX, 0, 0.9)], [(BOX, 0), (FAR, 0), (FAR, 1)], (1, 1 / 3, 1 / 2)),
        ([], [(BOX, 0)], (0, 0, 0)),
        ([(BOX, 0, 0.9)], [], (0, 0, 0)),
        ([], [], (0, 0, 0)),
    ],
    ids=[
        'perfect',
        'wrong class',
        'low IoU',
        'low score',
        'score at the threshold',
        'one false positive',
        'two missed objects',
        'no detections',
        'no objects',
        'empty image',
    ],
)
def test_results_computed_by_hand(pred, gt, expected):
    assert evaluate(image(pred, gt)) == pytest.approx(expected)


def test_duplicates_are_false_positives():
    pred = [(BOX, 0, 0.9), (BOX, 0, 0.8), (BOX, 0, 0.7)]
    assert evaluate(image(pred, [(BOX, 0)])) == pytest.approx((1 / 3, 1, 1 / 2))
    # Two objects in the same place need two detections.
    found = evaluate(image(pred[:2], [(BOX, 0), (BOX, 0)]))
    assert found == (1, 1, 1)


def test_detections_are_matched_in_order_of_score():
    left, right = (0, 0, 10, 10), (4, 0, 14, 10)
    middle = (1, 0, 11, 10)  # IoU 9/11 with left, 7/13 with right
    objects = [(left, 0), (right, 0)]
    # The middle detection takes the left object. The left one then finds no object.
    first = [(middle, 0, 0.9), (left, 0, 0.8)]
    assert evaluate(image(first, objects)) == (0.5, 0.5, 0.5)
    # In the other order the middle detection takes the right object.
    second = [(middle, 0, 0.8), (left, 0, 0.9)]
    assert evaluate(image(second, objects)) == (1, 1, 1)


def test_values_at_a_threshold_count():
    sample = image([(SHIFTED, 0, 0.3)], [(BOX, 0)])
    assert evaluate(sample, score_thr=0.3, iou_thr=0.33) == (1, 1, 1)
    assert evaluate(sample, score_thr=0.3, iou_thr=0.34) == (0, 0, 0)
    assert evaluate(sample, score_thr=0.31, iou_thr=0.33) == (0, 0, 0)


def test_class_agnostic_matching_ignores_classes():
    sample = image([(BOX, 0, 0.9), (FAR, 3, 0.9)], [(BOX, 1), (FAR, 2)])
    assert evaluate(sample) == (0, 0, 0)
    assert evaluate(sample, class_agnostic=True) == (1, 1, 1)


def test_all_images_are_counted_together():
    # Means over images or classes would be 1/2 and 3/4.
    first = image([(BOX, 0, 0.9)], [(BOX, 0)])
    second = image([(FAR, 1, 0.9)] * 3, [(BOX, 1)] * 2)
    assert evaluate(first, second) == pytest.approx((1 / 4, 1 / 3, 2 / 7))


def test_a_detection_does_not_match_in_another_image():
    first, second = image([(BOX, 0, 0.9)], []), image([], [(BOX, 0)])
    assert evaluate(first, second) == (0, 0, 0)


class TestIgnored:
    def test_they_do_not_count_and_detections_of_them_are_no_error(self):
        inside = (50, 50, 55, 55)
        pred = [(BOX, 0, 0.9), (FAR, 0, 0.9), (FAR, 0, 0.8), (inside, 0, 0.7)]
        assert evaluate(image(pred, [(BOX, 0)], [(FAR, 0)])) == (1, 1, 1)
        assert evaluate(image([], [], [(FAR, 0)])) == (0, 0, 0)

    def test_class_and_place_must_match(self):
        pred = [(BOX, 0, 0.9), (FAR, 0, 0.9)]
        expected = pytest.approx((1 / 2, 1, 2 / 3))
        assert evaluate(image(pred, [(BOX, 0)], [(FAR, 1)])) == expected
        assert evaluate(image(pred, [(BOX, 0)], [((80, 0, 90, 9), 0)])) == expected
        sample = image(pred, [(BOX, 0)], [(FAR, 1)])
        assert evaluate(sample, class_agnostic=True) == (1, 1, 1)

    def test_a_matched_detection_in_an_ignored_object_counts(self):
        assert evaluate(image([(BOX, 0, 0.9)], [(BOX, 0)], [(BOX, 0)])) == (1, 1, 1)


def iou(a, b):
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    if width <= 0 or height <= 0:
        return 0
    area_a, area_b = ((c[2] - c[0]) * (c[3] - c[1]) for c in (a, b))
    return width * height / (area_a + area_b - width * height)


def reference(images, iou_thr, score_thr):
    """Compute the results from one list of all detections, as VOC's evaluation does."""
    pool = [(s, i, box, c) for i, (p, _) in enumerate(images) for box, c, s in p]
    truths = {(i, j): t for i, (_, gt) in enumerate(images) for j, t in enumerate(gt)}
    objects, detections, matches = len(truths), 0, 0
    for score, i, box, label in sorted(pool, reverse=True):
        if score < score_thr:
            break
        detections += 1
        rivals = [
            (iou(box, truth), -key[1], key)
            for key, (truth, truth_label) in truths.items()
            if key[0] == i and truth_label == label
        ]
        if rivals and max(rivals)[0] >= iou_thr:
            del truths[max(rivals)[2]]
            matches += 1
    precision = matches / detections if detections else 0
    recall = matches / objects if objects else 0
    total = precision + recall
    return precision, recall, 2 * precision * recall / total if total else 0


# With so few pixels most boxes overlap, and many IoUs equal a threshold.
coordinate = st.integers(0, 6)
box = st.builds(
    lambda x, y, w, h: (x, y, x + w, y + h),
    *(coordinate, coordinate),
    *(st.integers(1, 6), st.integers(1, 6)),
)
label = st.integers(0, 1)
detection = st.tuples(box, label, st.integers(0, 16))
random_images = st.lists(
    st.tuples(
        st.lists(detection, max_size=6, unique_by=lambda d: d[2]),
        st.lists(st.tuples(box, label), max_size=5),
    ),
    min_size=1,
    max_size=3,
)


@given(
    images=random_images,
    iou_thr=st.sampled_from([0.25, 0.5, 0.75]),
    score_thr=st.sampled_from([0, 0.25, 0.5]),
    random=st.randoms(),
)
@settings(deadline=None, max_examples=60)
def test_random_boxes_agree_with_a_second_implementation(
    images, iou_thr, score_thr, random
):
    images = [([(b, c, s / 16) for b, c, s in p], gt) for p, gt in images]
    thresholds = dict(iou_thr=iou_thr, score_thr=score_thr)
    result = evaluate(*(image(*p) for p in images), **thresholds)
    assert result == pytest.approx(reference(images, **thresholds))

    # The order of images and of detections does not matter.
    shuffled = [(random.sample(p, len(p)), gt) for p, gt in images]
    random.shuffle(shuffled)
    assert evaluate(*(image(*p) for p in shuffled), **thresholds) == result


@pytest.mark.parametrize(
    'kwargs',
    [
        dict(iou_thr=0),
        dict(iou_thr=1.1),
        dict(iou_thr=float('nan')),
        dict(score_thr=-0.1),
        dict(score_thr=50),
    ],
    ids=str,
)
def test_a_threshold_out_of_range_is_an_error(kwargs):
    (name,) = kwargs
    with pytest.raises(ValueError, match=f'{name} must be in'):
        FMeasureMetric(**kwargs)


def test_images_that_pad_a_distributed_run_do_not_count():
    metric = METRICS.build(dict(type='FMeasureMetric'))
    metric.process(None, [image([(BOX, 0, 0.9)], [(BOX, 0)])])
    metric.process(None, [image([(FAR, 0, 0.9)], [(BOX, 0)])])
    assert metric.evaluate(1)['box/f_measure'] == 1


def test_without_images_all_results_are_0():
    assert evaluate() == (0, 0, 0)


@pytest.fixture
def data(root, digits, tmp_path):
    """The config of the digits with another image size, and its annotations."""
    folder = shutil.copytree(digits, tmp_path / 'digits')
    path = folder / 'annotations/instances_val2017.json'
    content = json.loads(path.read_text())
    content['annotations'][0]['iscrowd'] = 1
    path.write_text(json.dumps(content))
    cfg = Config.fromfile(root / 'configs/_base_/digits.py')
    cfg.val_dataloader.dataset.data_root = str(folder)
    cfg.val_evaluator.update(ann_file=str(path), metric='bbox')
    for transform in cfg.val_dataloader.dataset.pipeline:
        if transform['type'] == 'Resize':
            transform['scale'] = (160, 64)
    return cfg, content['annotations']


def validate(cfg, annotations, evaluator):
    """Validate a detector that finds exactly the annotated boxes."""
    dataset = DATASETS.build(cfg.val_dataloader.dataset)
    preprocessor = MODELS.build(dict(type='DetDataPreprocessor'))
    evaluator = Evaluator(evaluator)
    evaluator.dataset_meta = dataset.metainfo
    for i in range(len(dataset)):
        batch = preprocessor(pseudo_collate([dataset[i]]))
        (sample,) = batch['data_samples']
        found = [a for a in annotations if a['image_id'] == sample.img_id]
        boxes = torch.tensor([a['bbox'] for a in found]).float()
        boxes[:, 2:] += boxes[:, :2]
        sample.pred_instances = InstanceData(
            bboxes=boxes,
            labels=torch.tensor([a['category_id'] - 1 for a in found]),
            scores=torch.ones(len(found)),
        )
        evaluator.process([sample], batch)
    return evaluator.evaluate(len(dataset))


def test_a_real_pipeline_preprocessor_and_evaluator(data):
    """The images are resized, one object is a crowd, and CocoMetric runs, too."""
    cfg, annotations = data
    evaluator = [cfg.val_evaluator, dict(type='FMeasureMetric')]
    result = validate(cfg, annotations, evaluator)
    assert result['coco/bbox_mAP'] == pytest.approx(1)
    assert result['box/precision'] == result['box/recall'] == 1
    # A crowd is not an object, so a missing detection of it is not missed.
    assert validate(cfg, annotations[1:], evaluator[1:])['box/recall'] == 1
    result = validate(cfg, annotations[2:], evaluator[1:])
    assert result['box/recall'] == 1 - 1 / (len(annotations) - 1)
    assert result['box/precision'] == 1


def test_missing_ground_truth_is_an_error_that_says_what_to_do(data):
    cfg, annotations = data
    dataset = cfg.val_dataloader.dataset
    dataset.pipeline = [t for t in dataset.pipeline if t['type'] != 'LoadAnnotations']
    with pytest.raises(ValueError, match='LoadAnnotations.* between Resize and'):
        validate(cfg, annotations, dict(type='FMeasureMetric'))
    # The same without PackDetInputs.
    sample = DetDataSample(pred_instances=InstanceData()).to_dict()
    with pytest.raises(ValueError, match='LoadAnnotations'):
        FMeasureMetric().process(None, [sample])
