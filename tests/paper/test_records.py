"""Records of the paper's runs: one line of JSON each."""

import json
import multiprocessing

import pytest
from records import read_records, write_record
from small_table import record

COMPLETE = record('a', 'b2', 0, 0.1)
NAME = COMPLETE['run']


def test_a_complete_record_is_read(tmp_path):
    path = tmp_path / 'new' / 'a.jsonl'
    for complete in (COMPLETE, dict(COMPLETE, attempts=[COMPLETE, COMPLETE])):
        write_record(path, complete)
        assert read_records(path) == ({NAME: complete}, [])
    assert len(path.read_text().splitlines()) == 1


@pytest.mark.parametrize(
    'spoilt',
    [
        *({k: v for k, v in COMPLETE.items() if k != key} for key in COMPLETE),
        dict(COMPLETE, metrics=[0.1]),
        dict(COMPLETE, metrics={'coco/bbox_mAP': 'high'}),
        dict(COMPLETE, outcome=None),
        dict(COMPLETE, seed='0'),
        dict(COMPLETE, hardware={}),
        dict(COMPLETE, attempts=[]),
        dict(COMPLETE, attempts=[{}]),
        dict(COMPLETE, attempts=0),
        [COMPLETE],
    ],
    ids=str,
)
def test_a_record_that_lacks_anything_is_not_read(tmp_path, spoilt):
    path = tmp_path / 'a.jsonl'
    line = json.dumps(spoilt)
    path.write_text(f'{json.dumps(record("b", "b2", 0, 0.1))}\n{line}\n')
    found, broken = read_records(path)
    assert list(found) == ['b-b2-s0'] and broken == [line]


def test_no_file_has_no_records(tmp_path):
    assert read_records(tmp_path / 'none.jsonl') == ({}, [])


def test_a_record_replaces_only_its_own_run_and_incomplete_lines(tmp_path):
    path = tmp_path / 'a.jsonl'
    for seed in (0, 1):
        write_record(path, record('a', 'b2', seed, 0.1))
    with open(path, 'a') as file:
        file.write('{"run": "a-b4')  # a line that was cut off
    write_record(path, record('a', 'b2', 0, 0.9))
    found, broken = read_records(path)
    values = {name: r['metrics']['coco/bbox_mAP'] for name, r in found.items()}
    assert values == {'a-b2-s1': 0.1, 'a-b2-s0': 0.9}
    assert not broken and len(path.read_text().splitlines()) == 2


def write_many(path, row):
    for seed in range(15):
        write_record(path, record(row, 'b2', seed, 0.1))


def test_processes_that_write_at_the_same_time_lose_no_record(tmp_path):
    path = tmp_path / 'a.jsonl'
    context = multiprocessing.get_context('fork')
    writers = [context.Process(target=write_many, args=(path, row)) for row in 'abcd']
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    found, broken = read_records(path)
    assert not broken
    assert set(found) == {f'{row}-b2-s{seed}' for row in 'abcd' for seed in range(15)}
    assert [p.name for p in tmp_path.iterdir()] == ['a.jsonl']
