"""Reading of annotation files, with errors that name the file and its wrong entry.

MMDetection itself reads the files. Its datasets and metrics are replaced only while
``checked_annotations`` is active.
"""

import contextlib
from collections.abc import Callable, Iterator

import mmdet.evaluation.metrics.coco_metric as coco_metric
from mmdet.datasets import CocoDataset, XMLDataset
from mmdet.datasets.api_wrappers import COCO

from ...utils.log import warn
from .coco_content import describe_oddities, find_fault, repeated_id
from .hosts import is_of_host

# The keys of each entry that MMDetection reads; () stands for all keys
READ = dict(
    images=('file_name', 'height', 'width'), categories=('name',), annotations=()
)
# What MMDetection raises at content that it cannot read
READING_ERRORS = (
    *(AssertionError, AttributeError, IndexError, KeyError),
    *(OverflowError, TypeError, ValueError),
)


class CheckedCOCO(COCO):
    """MMDetection's reader of COCO files, with errors that name the wrong entry.

    Raises:
        ValueError: If the file cannot be read, or if two different entries have the
            same id. Without the check, one of the two would be lost.
    """

    def __init__(self, annotation_file: str | None = None) -> None:
        self.path = annotation_file
        try:
            super().__init__(annotation_file)
        # A ValueError is also raised for JSON that is damaged, or not in UTF-8.
        except (AssertionError, RecursionError, ValueError) as e:
            raise ValueError(_unusable(annotation_file, str(e))) from None

    def createIndex(self) -> None:
        try:
            super().createIndex()
        except READING_ERRORS as e:
            raise ValueError(find_fault(self.dataset) or repr(e)) from None
        for kind, keys in READ.items():
            by_id = {}
            for entry in self.dataset.get(kind) or ():
                first = by_id.setdefault(entry['id'], entry)
                if first is not entry and any(
                    first.get(key) != entry.get(key)
                    for key in keys or {**first, **entry}
                ):
                    raise ValueError(repeated_id(kind, entry['id']))


@contextlib.contextmanager
def checked_annotations() -> Iterator[None]:
    """Check the annotation files that datasets and metrics read in this context."""
    places = {
        (coco_metric, 'COCO'): lambda stock: CheckedCOCO,
        (CocoDataset, 'load_data_list'): _checked_load_data_list,
        (XMLDataset, 'parse_data_info'): _checked_parse_data_info,
    }
    stock = {place: getattr(*place) for place in places}
    try:
        for place, checked in places.items():
            setattr(*place, checked(stock[place]))
        yield
    finally:
        for place, value in stock.items():
            setattr(*place, value)


def _checked_parse_data_info(parse_data_info: Callable) -> Callable:
    def parse(self: XMLDataset, img_info: dict) -> dict:
        try:
            return parse_data_info(self, img_info)
        # Many types are possible: of XML, of a missing tag, of the image.
        except Exception as e:
            raise ValueError(
                f'{img_info["xml_path"]} cannot be used as annotations of '
                f'{img_info["file_name"]}: {type(e).__name__}: {e}'
            ) from e

    return parse


def _checked_load_data_list(load_data_list: Callable) -> Callable:
    def load(self: CocoDataset) -> list[dict]:
        files = []

        def read(path: str) -> CheckedCOCO:
            files.append(CheckedCOCO(path))
            return files[0]

        if type(self).COCOAPI is COCO:
            self.COCOAPI = read
        is_stock = type(self).parse_data_info is CocoDataset.parse_data_info
        try:
            records = load_data_list(self)
        except READING_ERRORS:
            fault = find_fault(files[0].dataset) if files and is_stock else ''
            if not fault:
                raise
            raise ValueError(_unusable(self.ann_file, fault)) from None
        finally:
            vars(self).pop('COCOAPI', None)
        if files:
            _check_loaded(self, files[0].dataset, records, is_stock)
        return records

    return load


def _check_loaded(
    dataset: CocoDataset, content: dict, records: list[dict], is_stock: bool
) -> None:
    """Check the content of a file that could be read, and note its classes.

    ``dataset.file_classes`` becomes the names of the classes in the order of the
    labels. It is not set if a class of the user's may number the labels, or if there
    are no objects and so no labels.
    """
    if not records and dataset.serialize_data:
        fault = find_fault(content) or "'images' is empty"
        raise ValueError(_unusable(dataset.ann_file, fault))
    if is_stock and (odd := describe_oddities(content)):
        warn(f'{dataset.ann_file}: {odd}')
    numbering = (type(dataset).load_data_list, type(dataset).parse_data_info)
    if content.get('annotations') and all(map(is_of_host, numbering)):
        names = {c['id']: c['name'] for c in content['categories']}
        dataset.file_classes = tuple(names[i] for i in dataset.cat_ids)


def _unusable(path: str | None, fault: str) -> str:
    return f'{path} cannot be used as annotations in the form of COCO: {fault}'
