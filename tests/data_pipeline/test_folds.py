"""Parts of a split by the id alone."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from data_pipeline.errors import UserError
from data_pipeline.folds import fold_of, fold_split, tenth_split
from data_pipeline.shards import ShardSet, Split
from tests.preparing import prepare_without_ray


@pytest.fixture(scope="module")
def split(tmp_path_factory: pytest.TempPathFactory) -> Split:
    """Forty training rows in several shards."""
    from data_pipeline.config import PrepareConfig, SampleSize

    root: Path = tmp_path_factory.mktemp("folds")
    folder = prepare_without_ray(PrepareConfig(output=str(root), sample=SampleSize(40, 4, 4, 0), rows_per_shard=16))
    return ShardSet.open(folder).split("train")


def test_every_row_is_measured_once_and_trained_on_in_all_other_folds(split: Split) -> None:
    measured: Counter[str] = Counter()
    for fold in range(5):
        train, dev = fold_split(split, 5, fold)
        measured.update(dev.ids)
        assert len(train) + len(dev) == len(split)
        assert not set(train.ids) & set(dev.ids)
    assert measured == Counter(split.ids)


def test_a_part_reads_as_a_split_does(split: Split) -> None:
    train, _ = fold_split(split, 4, 1)
    assert [example.id for example in train] == train.ids
    assert [example.id for example in train[1:4]] == train.ids[1:4]
    assert train[-1].id == train.ids[-1]
    np.testing.assert_array_equal(train.n_candidates, [len(example.models) for example in train])
    np.testing.assert_array_equal(train.target_tokens, [len(example.target_ids) for example in train])
    assert len(train.encoder_tokens) == len(train)
    for row in (0, 4, -1):
        np.testing.assert_array_equal(train.same_as(row), split.same_as(split.ids.index(train.ids[row])))


def test_a_rows_part_depends_on_its_id_alone_and_parts_are_even() -> None:
    counts = Counter(fold_of(f"row/{index}", 5) for index in range(5000))
    assert sorted(counts) == [0, 1, 2, 3, 4]
    assert all(900 < count < 1100 for count in counts.values())


def test_a_tenth_depends_on_ids_alone_and_is_one_of_every_part(split: Split) -> None:
    whole = SimpleNamespace(name="train", ids=[f"row/{index}" for index in range(5000)])
    others, tenth = tenth_split(whole)  # type: ignore[arg-type]
    assert 400 < len(tenth) < 600
    assert sorted(others.ids + tenth.ids) == sorted(whole.ids)
    for fold in range(10):  # though they are ten too
        trained, held_out = fold_split(whole, 10, fold)  # type: ignore[arg-type]
        assert tenth_split(trained)[1].ids == [row_id for row_id in tenth.ids if row_id not in set(held_out.ids)]
        assert 20 < len(set(tenth.ids) & set(held_out.ids)) < 80
    rest, part = tenth_split(fold_split(split, 4, 1)[0])
    assert [example.id for example in part] == part.ids
    np.testing.assert_array_equal(rest.target_tokens, [len(example.target_ids) for example in rest])


def test_a_part_without_rows_is_refused(split: Split) -> None:
    empty = min(set(range(2000)) - {fold_of(row_id, 2000) for row_id in split.ids})
    with pytest.raises(UserError, match=r"has 0 of its 40 rows: lower folds"):
        fold_split(split, 2000, empty)
