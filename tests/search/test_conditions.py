"""The query language: the same answer from arrays and from MongoDB's operators, and errors that say what is allowed."""

from __future__ import annotations

import numpy as np
import pytest

from hydroflow.errors import DataError
from hydroflow.search.conditions import parse

FIELDS = {"formula": str, "spacegroup": float, "tc": float}
COLUMNS = {"formula": np.array(["CaH6", "CaYH12", "YH6", "CaYH12"], dtype=object),
           "spacegroup": np.array([229, 225, 62, 12]), "tc": np.array([210.0, np.nan, 150.0, 20.0])}


@pytest.mark.parametrize(("text", "rows"), [
    ("formula = 'CaYH12' and spacegroup > 75", [1]),
    ("formula = \"CaYH12\" AND NOT spacegroup > 75", [3]),
    ("formula in ('CaH6', 'YH6') or spacegroup == 12", [0, 2, 3]),
    ("not (formula = 'CaH6' or tc >= 1.5e2)", [1, 3]),
    ("spacegroup != 62 and (spacegroup<=229 and spacegroup>=225)", [0, 1]),
    ("formula = 'CaH6' or formula = 'YH6' and spacegroup < 5", [0]),  # 'and' binds tighter
])
def test_masks(text: str, rows: list[int]) -> None:
    assert np.flatnonzero(parse(text, FIELDS).mask(COLUMNS)).tolist() == rows


def test_mongo_filter() -> None:
    condition = parse("formula in ('A', 'B') and not (spacegroup > 75 or tc != 3)", FIELDS)
    assert condition.mongo({"formula": "formula", "spacegroup": "sg", "tc": "tc_k"}) == {"$and": [
        {"formula": {"$in": ["A", "B"]}},
        {"$nor": [{"$or": [{"sg": {"$gt": 75.0}}, {"tc_k": {"$ne": 3.0, "$exists": True}}]}]}]}


@pytest.mark.parametrize(("text", "values"), [
    ("formula = 'A' and spacegroup > 3", {"A"}), ("formula in ('A', 'B') and formula = 'B'", {"B"}),
    ("formula = 'A' or formula = 'B'", {"A", "B"}), ("formula = 'A' or spacegroup > 3", None), ("not formula = 'A'", None)])
def test_required_values_prune_shards_safely(text: str, values: set[str] | None) -> None:
    assert parse(text, FIELDS).required("formula") == values


@pytest.mark.parametrize(("text", "words"), [
    ("color = 'red'", "'color' is not a field .fields: formula, spacegroup, tc"),
    ("formula = 12", "compared with a quoted text, not with '12'"),
    ("spacegroup > 'P1'", "compared with a number"),
    ("spacegroup 75", "is not a comparison"),
    ("spacegroup >", "ends where a value is expected"),
    ("(spacegroup > 7", "ends where"),
    ("spacegroup > 7 tc > 3", "'tc' is not expected"),
    ("spacegroup > 7 ; drop", "cannot read ';"),
])
def test_errors(text: str, words: str) -> None:
    with pytest.raises(DataError, match=words):
        parse(text, FIELDS)
