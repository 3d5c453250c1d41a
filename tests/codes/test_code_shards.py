"""Code files: what is written is read, views equal the stream, damage is refused by name."""

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from planted_bases import PlantedFrame, planted_centres, planted_directions, planted_rows
from safetensors.torch import load_file

from eigenloom.codes.codings import coding_from
from eigenloom.codes.layouts import layout_for
from eigenloom.codes.manifest import write_manifest, write_part_edge
from eigenloom.codes.residuals import Tails
from eigenloom.codes.shards import check_together, open_codes
from eigenloom.codes.statistics import FeatureStatistics
from eigenloom.codes.stream import LAYOUTS, CodeBatch, CodeStream
from eigenloom.codes.views import RowCodes, StoredCodes
from eigenloom.codes.writing import ShardRows, write_part
from eigenloom.errors import ConfigError, DataError, MismatchError, StoreError
from eigenloom.moments import Standardization
from eigenloom.sources.arrays import ArrayRows

SIZES = (40, 25, 35)
DIRECTIONS = {"layout": "topk", "stored_k": 6, "errors_k": [1, 3]}


def standardization(d):
    return Standardization("standard", "layer-03", torch.linspace(-1, 1, d).double(), torch.linspace(1, 2, d).double())


def write(directory, basis, spec, rows, *, batch_size=16, per_part=2, features_per_file=None, header=None):
    """Encode ``rows`` as shards of SIZES, two shards in the first part, and join."""
    layout = layout_for(basis, spec)
    shards = [ShardRows(i, ArrayRows(x, batch_size), f"val shard {i}") for i, x in enumerate(rows.split(SIZES))]
    edges, first = [], 0
    for part, start in enumerate(range(0, len(shards), per_part)):
        chosen = shards[start : start + per_part]
        entries = write_part(directory, part, chosen, layout, features_per_file=features_per_file)
        head = {
            "split": "val", "layer": "layer-03", "basis": "ab", "signature": "s", **layout.header(),
            "part": part, "first_row": first,
            "spec": spec, "inputs": {}, **(header or {}),
        }  # fmt: skip
        edges.append(directory / f"part-{part:05d}.json")
        write_part_edge(edges[-1], head, entries)
        first += entries["n_rows"]
    write_manifest(directory / "manifest.json", edges[::-1])
    return open_codes(directory, verify=True)


class ShardedRows(ArrayRows):
    """Rows cut into batches where ``write`` cuts them: a GEMM rounds by the shape of its batch."""

    def __iter__(self):
        return (batch for shard in self._rows.split(SIZES) for batch in shard.split(16))


def dense(stream):
    assert isinstance(stream, CodeStream)
    batches = list(stream)
    assert {batch.layout for batch in batches} == {stream.layout}
    assert stream.layout in LAYOUTS
    codes = torch.cat([batch.to_dense() for batch in batches])
    assert codes.shape == (stream.n_rows, stream.n_features)
    return codes


@pytest.fixture
def centres():
    return planted_centres(standardization=standardization(6))


@pytest.fixture
def directions():
    return planted_directions(standardization=standardization(12))


VIEWS = [
    ({"layout": "label"}, {"kind": "onehot"}),
    ({"layout": "label"}, {"kind": "inverse-distance-nearest"}),
    ({"layout": "dense"}, {"kind": "onehot"}),
    ({"layout": "dense"}, {"kind": "inverse-distance"}),
    ({"layout": "dense"}, {"kind": "similarity"}),
    ({"layout": "dense"}, {"kind": "threshold", "quantile": 0.2}),
    ({"layout": "dense"}, {"kind": "squared-distance"}),
    ({"layout": "dense"}, {"kind": "nearest", "k": 3, "values": "similarity"}),
    (DIRECTIONS, {"kind": "topk", "k": 6}),
    (DIRECTIONS, {"kind": "topk", "k": 2}),
    ({"layout": "topk", "stored_k": 99}, {"kind": "dense"}),
    ({"layout": "topk", "stored_k": 99}, {"kind": "topk", "k": 64}),
    ({"layout": "dense", "dtype": "float32"}, {"kind": "dense"}),
    ({"layout": "dense", "dtype": "float32"}, {"kind": "topk", "k": 4}),
]


@pytest.mark.parametrize(("spec", "config"), VIEWS, ids=lambda v: v.get("kind", v.get("layout")))
def test_views_equal_the_stream(tmp_path, centres, directions, spec, config):
    coding = coding_from(config)
    basis, x = (centres, planted_rows(100)) if coding.geometry == "distance" else (directions, planted_rows(100, 12))
    shards = write(tmp_path, basis, spec, x)
    stored = StoredCodes(shards, coding).calibrated()
    rows = ShardedRows(x)
    streamed = RowCodes(rows, basis, coding.calibrate(basis, rows))
    assert stored.coding == streamed.coding
    assert torch.equal(dense(stored), dense(streamed))
    assert stored.n_clipped == streamed.n_clipped == 0


def test_clipped_entries_are_counted_alike(tmp_path, centres):
    x = planted_rows(100)
    shards, coding = write(tmp_path, centres, {"layout": "dense"}, x), coding_from({"kind": "similarity", "d_max": 1.0})
    stored, streamed = StoredCodes(shards, coding), RowCodes(ArrayRows(x), centres, coding)
    assert torch.equal(dense(stored), dense(streamed))
    expected = (torch.cdist(centres.standardization.apply(x), centres.centres) > 1).sum().item()
    assert stored.n_clipped == streamed.n_clipped == expected > 0


@pytest.mark.parametrize("spec", [{"layout": "label"}, {"layout": "dense"}, DIRECTIONS, {"layout": "dense", "p": 1}])
def test_statistics_errors_and_rows(tmp_path, centres, directions, spec):
    distance = spec in ({"layout": "label"}, {"layout": "dense"})
    basis, x = (centres, planted_rows(100)) if distance else (directions, planted_rows(100, 12))
    shards = write(tmp_path, basis, spec, x)
    codes = dense(StoredCodes(shards, coding_from(
        {"kind": {"labels": "onehot", "squared-distance": "squared-distance"}.get(shards.values_kind, "topk")}
        | ({"k": shards.stored_k} if shards.values_kind == "codes" else {})
    ))).double()  # fmt: skip
    found = shards.statistics()
    assert found.n_rows == shards.n_rows == 100
    torch.testing.assert_close(found.mean, codes.mean(0), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(found.std, codes.std(0, correction=0), rtol=1e-6, atol=1e-9)
    assert torch.equal(found.minimum.double(), codes.amin(0))
    assert torch.equal(found.maximum.double(), codes.amax(0))
    fitted = basis.standardization.apply(x)
    if distance:
        labels = torch.cdist(fitted.double(), basis.centres.double()).argmin(1)
        assert torch.equal(found.n_nonzero, torch.bincount(labels, minlength=10))
    else:
        assert torch.equal(found.n_nonzero, (codes != 0).sum(0))
    assert found.n_nonfinite.sum() == 0
    errors = [shards.errors(position) for position in range(len(shards.parts))]
    ks = errors[0][0]
    assert ks == ([1] if distance else [1, 3, 6] if "stored_k" in spec else [12])
    for column, k in enumerate(ks):
        z = basis.encode(fitted).double()
        kept = z if distance else torch.where(z.abs() >= z.abs().topk(k, 1).values[:, -1:], z, 0)
        expected = (fitted.double() - basis.decode(kept.float()).double()).square().sum(1)
        ours = torch.cat([part[:, column] for _, part in errors]).double()
        torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-9)
        assert ours.sum().item() == pytest.approx(expected.sum().item(), rel=1e-6, abs=1e-8)


def test_blocks_never_cross_shards_and_number_rows(tmp_path, centres):
    shards = write(tmp_path, centres, {"layout": "label"}, planted_rows(100))
    assert [(block.first_row, block.shard, len(block.arrays["labels"])) for block in shards] == [
        (0, 0, 40), (40, 1, 25), (65, 2, 35),
    ]  # fmt: skip


def test_bytes_do_not_depend_on_the_batch_cut_of_planted_codes(tmp_path, centres):
    digests = set()
    for size in (7, 100):
        shards = write(tmp_path / str(size), centres, {"layout": "label"}, planted_rows(100), batch_size=size)
        digests.add(tuple(part[name]["sha256"] for part in shards.parts for name in ("labels", "distances", "errors")))
    assert len(digests) == 1


def test_column_blocks(tmp_path, directions):
    x = planted_rows(100, 12)
    whole = write(tmp_path / "a", directions, {"layout": "dense"}, x)
    cut = write(tmp_path / "b", directions, {"layout": "dense"}, x, features_per_file=5)
    assert [block["file"] for block in cut.parts[0]["values"]["blocks"]] == [
        "part-00000.values-000000.bin", "part-00000.values-000005.bin", "part-00000.values-000010.bin",
    ]  # fmt: skip
    coding = coding_from({"kind": "dense"})
    assert torch.equal(dense(StoredCodes(whole, coding)), dense(StoredCodes(cut, coding)))


def test_half_precision_rounds_and_says_so_in_the_statistics(tmp_path, centres):
    shards = write(tmp_path, centres, {"layout": "dense", "dtype": "float16"}, planted_rows(100))
    assert shards.parts[0]["values"]["dtype"] == "<f2"
    codes = dense(StoredCodes(shards, coding_from({"kind": "squared-distance"})))
    exact = dense(RowCodes(ArrayRows(planted_rows(100)), centres, coding_from({"kind": "squared-distance"})))
    assert torch.equal(codes, exact.half().float())
    assert torch.equal(shards.statistics().maximum, codes.amax(0))
    distances = torch.cat([block.arrays["distances"] for block in shards])
    assert torch.equal(distances, exact.amin(1)), "the nearest distance stays exact"


def test_half_precision_overflow_is_refused(tmp_path, centres):
    with pytest.raises(DataError, match=r"does not fit float16.*use float32"):
        write(tmp_path, centres, {"layout": "dense", "dtype": "float16"}, 300 * planted_rows(100))
    assert not list(tmp_path.glob("*"))


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("spec", [{"layout": "label"}, {"layout": "dense"}])
def test_nonfinite_codes_name_shard_and_row(tmp_path, centres, value, spec):
    x = planted_rows(100)
    x[40 + 21, 2] = value
    with pytest.raises(DataError, match=r"val shard 1, row 21, .*the basis or its input is broken"):
        write(tmp_path, centres, spec, x)
    assert not list(tmp_path.glob("*"))
    with pytest.raises(DataError, match=r"probe_val, row 61, feature \d+"):
        list(RowCodes(ArrayRows(x, 16), centres, coding_from({"kind": "inverse-distance"}), where="probe_val"))


def test_rows_of_another_width_are_refused(tmp_path, centres):
    with pytest.raises(DataError, match="12 features, but the basis takes 6"):
        write(tmp_path, centres, {"layout": "label"}, planted_rows(100, 12))
    with pytest.raises(DataError, match="12 features, but the basis takes 6"):
        RowCodes(ArrayRows(planted_rows(100, 12)), centres, coding_from({"kind": "onehot"}))


@pytest.mark.parametrize("damage", ["truncate", "extend", "flip", "remove"])
@pytest.mark.parametrize("name", ["values.bin", "indices.bin", "errors.bin", "stats.safetensors"])
def test_damaged_files_are_refused_by_name(tmp_path, directions, damage, name):
    write(tmp_path, directions, DIRECTIONS, planted_rows(100, 12))
    path = tmp_path / f"part-00001.{name}"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.unlink()
    if damage != "remove":
        path.write_bytes({"truncate": data[:-1], "extend": data + b"\0", "flip": data}[damage])
    with pytest.raises(StoreError, match=f"part-00001.{name}"):
        open_codes(tmp_path, verify=damage == "flip")


def test_an_index_out_of_range_is_refused_when_read(tmp_path, centres):
    shards = write(tmp_path, centres, {"layout": "label"}, planted_rows(100))
    np.full(65, 10, "<i4").tofile(tmp_path / "part-00000.labels.bin")
    with pytest.raises(StoreError, match=r"part-00000.labels.bin: holds 10 to 10"):
        list(shards)


def test_a_file_cut_after_opening_is_not_read_short(tmp_path, centres):
    shards = write(tmp_path, centres, {"layout": "label"}, planted_rows(100))
    (tmp_path / "part-00001.distances.bin").write_bytes(b"\0" * 8)
    with pytest.raises(StoreError, match=r"part-00001.distances.bin: ends before row 35"):
        list(shards)


def edited(directory, change):
    meta = json.loads((directory / "manifest.json").read_text())
    change(meta)
    (directory / "manifest.json").write_text(json.dumps(meta))
    return pytest.raises(StoreError)


CHANGES = {
    "version": lambda m: m.update(version=2),
    "format": lambda m: m.update(format="other"),
    "layout": lambda m: m.update(layout="csr"),
    "no key": lambda m: m.pop("stored_k"),
    "gap": lambda m: m["parts"][1].update(first_row=66),
    "order": lambda m: m["parts"].reverse(),
    "rows": lambda m: m.update(n_rows=101),
    "shape": lambda m: m["parts"][0]["values"].update(shape=[65, 7]),
    "dtype": lambda m: m["parts"][0]["values"].update(dtype="<f8"),
    "outside": lambda m: m["parts"][0]["values"].update(file="../values.bin"),
    "smaller": lambda m: m["parts"][0]["values"].update(dtype="<f2"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_foreign_manifests_are_refused(tmp_path, directions, change):
    write(tmp_path, directions, DIRECTIONS, planted_rows(100, 12))
    with edited(tmp_path, CHANGES[change]) as caught:
        open_codes(tmp_path)
    assert str(tmp_path) in str(caught.value)


def test_joining_refuses_parts_of_different_making(tmp_path, centres):
    write(tmp_path, centres, {"layout": "label"}, planted_rows(100))
    edges = sorted(tmp_path.glob("part-*.json"))
    other = json.loads(edges[1].read_text())
    edges[1].write_text(json.dumps({**other, "standardization": "another"}))
    with pytest.raises(MismatchError, match="standardization 'another'|'another'"):
        write_manifest(tmp_path / "manifest.json", edges)
    edges[1].write_text(json.dumps({**other, "first_row": 66}))
    with pytest.raises(StoreError, match="66"):
        write_manifest(tmp_path / "manifest.json", edges)
    with pytest.raises(StoreError, match="expected 'eigenloom.codes-part'"):
        write_manifest(tmp_path / "manifest.json", [tmp_path / "manifest.json"])
    with pytest.raises(StoreError, match="share a directory"):
        write_manifest(tmp_path / "elsewhere" / "manifest.json", edges[:1])
    with pytest.raises(StoreError, match="at least one part"):
        write_manifest(tmp_path / "manifest.json", [])


def test_two_splits_must_be_of_one_making(tmp_path, centres):
    train = write(tmp_path / "a", centres, {"layout": "label"}, planted_rows(100))
    same = write(tmp_path / "b", centres, {"layout": "label"}, planted_rows(100, seed=5), header={"split": "train"})
    check_together(train, same)
    other = write(tmp_path / "c", centres, {"layout": "label"}, planted_rows(100), header={"basis": "cd"})
    with pytest.raises(MismatchError, match=r"basis 'ab'.*'cd'.*run encode"):
        check_together(train, other)


def test_views_that_the_files_cannot_serve(tmp_path, centres, directions):
    labels = write(tmp_path / "a", centres, {"layout": "label"}, planted_rows(100))
    topk = write(tmp_path / "b", directions, DIRECTIONS, planted_rows(100, 12))
    distances = write(tmp_path / "c", centres, {"layout": "dense"}, planted_rows(100))
    for shards, config in [
        (labels, {"kind": "inverse-distance"}),
        (topk, {"kind": "topk", "k": 7}),
        (topk, {"kind": "dense"}),
        (distances, {"kind": "dense"}),
        (topk, {"kind": "squared-distance"}),
    ]:
        with pytest.raises(ConfigError, match=r"cannot serve the coding"):
            StoredCodes(shards, coding_from(config))


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({"layout": "csr"}, "csr"),
        ({}, "None"),
        ({"layout": "label"}, "use topk or dense"),
        ({"layout": "topk"}, "stored_k None"),
        ({"layout": "topk", "stored_k": 0}, "stored_k 0"),
        ({"layout": "topk", "stored_k": 2, "errors_k": [0]}, "errors_k"),
        ({"layout": "dense", "dtype": "int8"}, "int8"),
    ],
)
def test_bad_layouts(directions, spec, message):
    with pytest.raises(ConfigError, match=message):
        layout_for(directions, spec)


def test_topk_is_no_layout_of_centres(centres):
    with pytest.raises(ConfigError, match="use label or dense"):
        layout_for(centres, {"layout": "topk", "stored_k": 4})


@pytest.mark.parametrize("layout", LAYOUTS)
def test_statistics_merge_from_any_cut(layout):
    g = torch.Generator().manual_seed(3)
    codes = torch.randn(50, 5, generator=g) + 40
    codes[:, 4] = 7.0
    if layout == "label":
        batch = CodeBatch.label(torch.randint(0, 4, (50,), generator=g), 5)
    elif layout == "sparse":
        batch = CodeBatch.sparse(codes[:, :2], codes.argsort(1)[:, :2], 5)
    else:
        batch = CodeBatch.dense(codes)
    z = batch.to_dense().double()
    whole = None
    for ids in torch.arange(50).split([1, 30, 19]):
        piece = replace(batch, values=batch.values[ids], indices=batch.indices[ids])
        found = FeatureStatistics.of(piece)
        whole = found if whole is None else whole.merge(found)
    torch.testing.assert_close(whole.mean, z.mean(0), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(whole.m2, (z - z.mean(0)).square().sum(0), rtol=1e-6, atol=1e-9)
    assert torch.equal(whole.n_nonzero, (z != 0).sum(0))
    assert torch.equal(whole.minimum.double(), z.amin(0))
    assert torch.equal(whole.maximum.double(), z.amax(0))


def test_tails_check_what_a_basis_claims(caplog):
    assert Tails.of(planted_directions(cls=PlantedFrame)) is None
    assert Tails.of(planted_directions()).complete
    assert Tails.of(planted_directions()).uniform
    assert not Tails.of(planted_directions(k=5)).complete
    assert not Tails.of(planted_directions(whiten=True)).uniform
    far = planted_directions(k=5)
    assert Tails.of(replace(far, mean=far.mean + 1e4)) is not None
    assert Tails.of(replace(far, scales=torch.tensor([1e4, 1.0, 1e-4, 1.0, 0.0]))) is not None
    skewed = replace(far, components=far.components + 1e-3)
    assert Tails.of(skewed) is None
    assert "off orthonormal" in caplog.text


def test_the_documented_keys_are_those_written(tmp_path, centres):
    shards = write(tmp_path, centres, {"layout": "dense"}, planted_rows(100))
    document = (Path(__file__).parents[2] / "docs/format.md").read_text(encoding="utf-8")
    heads = {line for line in document.splitlines() if line.startswith("| `")}
    documented = {word.strip("` ") for line in heads for word in line.split("|")[1].split(",")}
    written = {*shards.meta, *shards.parts[0], *load_file(tmp_path / "part-00000.stats.safetensors")}
    assert written <= documented
