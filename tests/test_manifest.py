"""Tests of fingerprints, shard plans and differences, which everything resumable stands on."""

import copy
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from mmar_jobs.manifest import (
    Manifest,
    Shard,
    canonical_json,
    difference,
    fingerprint,
    plan_shards,
    sha256,
)

LEAVES = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text()
)
JSON = st.recursive(
    LEAVES,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
)
RECIPES = st.dictionaries(st.text(), JSON, max_size=4).filter(
    lambda recipe: "Infinity" not in json.dumps(recipe)
)
DIGESTS = st.dictionaries(st.text(), st.text(), max_size=3)


def make_manifest(**values: Any) -> Manifest:
    """A manifest of two shards."""
    known: dict[str, Any] = {
        "stage": "generate",
        "fingerprint": "f",
        "recipe": {},
        "inputs": {},
        "shards": (
            Shard(name="a", sha256=sha256(b"a"), size_bytes=1, num_records=1),
            Shard(name="b", sha256=sha256(b"b"), size_bytes=1),
        ),
        "counts": {},
        "metrics": {},
        "placement": {},
        "cost": {},
    }
    return Manifest.model_validate(known | values)


def shuffled(value: Any, reverse: bool) -> Any:
    """The same JSON value with its keys in another order."""
    if isinstance(value, dict):
        items = sorted(value.items(), reverse=reverse)
        return {key: shuffled(item, reverse) for key, item in items}
    return [shuffled(item, reverse) for item in value] if isinstance(value, list) else value


@given(RECIPES, DIGESTS)
def test_fingerprint_is_blind_to_order(recipe: dict[str, Any], inputs: dict[str, str]) -> None:
    """Equal recipes give equal fingerprints, in whatever order their keys stand."""
    first = fingerprint("train", shuffled(recipe, reverse=False), inputs)
    assert first == fingerprint("train", shuffled(recipe, reverse=True), inputs)


PAIRS = (
    st.tuples(RECIPES, RECIPES)
    | RECIPES.map(lambda recipe: (recipe, shuffled(recipe, reverse=True)))
    | st.tuples(RECIPES, st.text(), LEAVES).map(lambda x: (x[0], {**x[0], x[1]: x[2]}))
)


@given(PAIRS)
def test_fingerprint_and_difference_agree(pair: tuple[dict[str, Any], dict[str, Any]]) -> None:
    """Fingerprints are equal where the JSON is; then, and where Python agrees, nothing is named."""
    old, new = pair
    equal = fingerprint("train", old, {}) == fingerprint("train", new, {})
    assert equal == (canonical_json(old) == canonical_json(new))
    # 0 and 0.0, 1 and True are equal to Python and not in JSON: a user would see no difference.
    assert (old == new) == ([] == difference(old, new))
    if equal:
        assert [] == difference(old, new)


@given(RECIPES)
def test_fingerprint_sees_every_part(recipe: dict[str, Any]) -> None:
    """Another stage, one more setting or another input is another fingerprint."""
    base = fingerprint("train", recipe, {"questions": "1"})
    assert base != fingerprint("infer", recipe, {"questions": "1"})
    assert base != fingerprint("train", recipe, {"questions": "2"})
    assert base != fingerprint("train", {**recipe, "a new name": 1}, {"questions": "1"})


def test_fingerprint_refuses_what_json_cannot_say() -> None:
    """NaN is no setting: it would not even equal itself."""
    with pytest.raises(ValueError, match="JSON"):
        canonical_json({"temperature": float("nan")})


@given(st.integers(0, 2000), st.integers(1, 300))
def test_shards_cover_every_item_once(num_items: int, items_per_shard: int) -> None:
    """The slices follow each other without gap, none is empty, and all but the last are full."""
    plan = list(plan_shards(num_items, items_per_shard))
    covered = [index for _, part in plan for index in range(num_items)[part]]
    assert list(range(num_items)) == covered
    assert all(part.stop > part.start for _, part in plan)
    assert all(part.stop - part.start == items_per_shard for _, part in plan[:-1])


@given(st.integers(0, 2000), st.integers(1, 300))
def test_shard_names_sort_as_they_are_made(num_items: int, items_per_shard: int) -> None:
    """Names are unique, and a sorted listing is in the order of the items."""
    names = [name for name, _ in plan_shards(num_items, items_per_shard)]
    assert sorted(set(names)) == names


def test_shard_name_says_its_place() -> None:
    """The third of sixteen."""
    assert "part-00002-of-00016.jsonl.gz" == [name for name, _ in plan_shards(16, 1)][2]


def test_empty_shards_are_a_defect() -> None:
    """No setting allows zero, so this is an error of the caller."""
    with pytest.raises(ValueError, match="at least 1"):
        list(plan_shards(3, 0))


@given(RECIPES)
def test_nothing_differs_from_itself(recipe: dict[str, Any]) -> None:
    """Equal recipes have no difference."""
    assert [] == difference(recipe, copy.deepcopy(recipe))


def test_difference_names_paths_and_values() -> None:
    """Nested settings are named by their dotted path; a missing one is told from None."""
    old = {"sampling": {"top_p": 0.95, "seed": 0}, "muted": None, "gone": 1}
    new = {"sampling": {"top_p": 0.9, "seed": 0}, "new": None}
    expected = [
        "gone: 1 -> nothing",
        "muted: None -> nothing",
        "new: nothing -> None",
        "sampling.top_p: 0.95 -> 0.9",
    ]
    assert expected == difference(old, new)


def test_digest_is_of_content_alone() -> None:
    """Where and how long a stage ran does not change the digest; a shard's bytes and name do."""
    base = make_manifest()
    assert base.digest == make_manifest(cost={"seconds": 3.0}, placement={"host": "b"}).digest
    other = Shard(name="a", sha256=sha256(b"x"), size_bytes=1)
    assert base.digest != make_manifest(shards=(other, base.shards[1])).digest
    assert base.digest != make_manifest(shards=base.shards[::-1]).digest
    assert base.digest != make_manifest(fingerprint="g").digest


def test_manifest_of_another_version_is_refused() -> None:
    """A manifest of a later schema is not read as if it were of this one."""
    with pytest.raises(ValidationError, match="schema_version"):
        make_manifest(schema_version=2)


def test_shard_needs_a_digest() -> None:
    """A shard without a SHA-256 could not be checked."""
    with pytest.raises(ValidationError, match="sha256"):
        Shard(name="a", sha256="", size_bytes=1)
