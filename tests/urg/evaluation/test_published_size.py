from __future__ import annotations

import pytest

from urg.evaluation.paper_tables import published
from urg.evaluation.published_size import SIZES, ours_beside, published_size


@pytest.mark.parametrize(("parameters", "size"), [(5e6, "770M"), (0.783e9, "770M"), (2.85e9, "3B"), (11e9, "3B")])
def test_the_nearest_size(parameters: float, size: str):
    assert published_size(parameters) == size


@pytest.mark.parametrize("size", SIZES)
def test_urg_stands_beside_the_row_of_its_size_alone(size: str):
    rows = [row for group in published()["urg"]["table2"]["groups"] for row in group["rows"]]
    beside = {row["name"]: ours_beside(row, size) for row in rows}
    assert {printed: ours for printed, ours in beside.items() if printed.startswith("URG") and ours} == {
        f"URG ({size})": ["urg"],
        f"URG-rank ({size})": ["urg_rank"],
    }
    assert {row["name"]: row["ours"] for row in rows if not row["name"].startswith("URG")}.items() <= beside.items()
