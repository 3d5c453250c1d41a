"""Digests of texts, files and values."""

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eigenloom.provenance import canonical_json, file_digest, text_digest

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=10,
)


@given(st.dictionaries(st.text(), json_values))
def test_canonical_json_ignores_key_order_and_parses_back(value):
    reordered = dict(reversed(value.items()))
    assert canonical_json(value) == canonical_json(reordered)
    assert json.loads(canonical_json(value)) == value


@pytest.mark.parametrize("value", [math.nan, math.inf, [1, -math.inf]])
def test_canonical_json_refuses_what_json_lacks(value):
    with pytest.raises(ValueError, match="not JSON compliant"):
        canonical_json(value)


def test_digests_are_sha256(tmp_path):
    (tmp_path / "file").write_bytes(b"abc")
    assert file_digest(tmp_path / "file") == text_digest("abc")
    assert text_digest("abc").startswith("ba7816bf8f01cfea414140de5dae2223b00361a396177a9c")
