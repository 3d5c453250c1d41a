"""The guard names every file whose record stems from another run, and nothing else."""

import json
import os
import shutil
import time
from pathlib import Path

import pytest

import records
from eigenloom.provenance import canonical_json, file_digest
from records import EDGE, by_target, complaint, skew

pytestmark = pytest.mark.dag

BASIS = "artifacts/tiny-scenes/bases/kmeans-016/layer-01/meta.json"


@pytest.fixture
def here(project, monkeypatch):
    """The built project as working directory."""
    monkeypatch.chdir(project.root)
    monkeypatch.setattr(records, "_digest", lambda path: f"sha256:{file_digest(path)}")
    return project


def rewrite(path: str, **changes) -> None:
    """Change keys of an edge, keeping its time."""
    times = os.stat(path)
    document = json.loads(Path(path).read_text()) | changes
    Path(path).write_text(json.dumps(document))
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))


@pytest.mark.parametrize(
    ("path", "is_edge"),
    [
        ("artifacts/s/saev/shards/fit_train/store.json", True),
        ("artifacts/s/saev/shards/fit_train/shard-00003.json", True),
        ("artifacts/s/saev/shards/fit_train/labels.json", True),
        ("artifacts/s/codes/b/topk/layer-01/fit_val/manifest.json", True),
        ("artifacts/s/codes/b/topk/layer-01/fit_val/part-00000.json", True),
        ("artifacts/s/saev/shards/fit_train/metadata.json", False),
        ("artifacts/s/saev/shards/fit_train/shard-00003.run.json", False),
        ("artifacts/s/moments/fit_train/layer-01/run.json", False),
        ("artifacts/s/images/fit_train/files.json", False),
        ("artifacts/.resume/s/bases/b/layer-01/meta.json", False),
        ("results/s/layer-01/b/onehot/metrics.json", False),
    ],
)
def test_edges_are_the_files_that_rules_take(path, is_edge):
    assert bool(EDGE.match(path)) == is_edge


def test_every_edge_of_the_workflow_is_one_for_the_guard(here):
    named = {str(p) for p in Path("artifacts").rglob("*.json") if "spec" in json.loads(p.read_text() or "{}")}
    assert named == {path for path in named if EDGE.match(path)}
    assert {Path(path).stem.rstrip("0123456789") for path in named} == {
        "meta", "store", "manifest", "labels", "part-", "shard-",
    }  # fmt: skip


def test_nothing_is_wrong_after_a_run_nor_while_one_lives(here):
    assert skew() == {}
    record = by_target(".snakemake/metadata")[BASIS]
    marker = Path(".snakemake/incomplete") / record.relative_to(".snakemake/metadata")
    marker.parent.mkdir(parents=True, exist_ok=True)
    shutil.move(record, marker)
    Path(BASIS).write_text("{half")
    assert BASIS not in skew()


def test_artifacts_without_records(here):
    shutil.rmtree(".snakemake/metadata")
    found = skew()
    assert set(found.values()) == {"has no record"}
    assert BASIS in found
    shutil.rmtree(".snakemake")
    assert skew() == found


def test_artifacts_of_another_configuration(here):
    """Git moved, DVC did not: the record says one specification, the edge another."""
    spec = json.loads(Path(BASIS).read_text())["spec"]
    rewrite(BASIS, spec=spec | {"seed": 99})
    found = skew()
    assert found.pop(BASIS) == "is not the file its record describes"
    assert "artifacts/tiny-scenes/probes/kmeans-016/onehot/layer-01/meta.json" in found
    assert set(found.values()) == {f"was made from another {BASIS}"}


def test_artifacts_made_from_other_inputs(here):
    """The same specification, but the edge says it read another store than its record does."""
    inputs = json.loads(Path(BASIS).read_text())["inputs"]
    rewrite(BASIS, inputs=inputs | {min(inputs): "0" * 64})
    assert skew()[BASIS] == "is not the file its record describes"


def test_records_of_another_configuration(here):
    """DVC moved, Git did not: the same, seen from the record."""
    path = by_target(".snakemake/metadata")[BASIS]
    record = json.loads(path.read_text())
    spec = json.loads(Path(BASIS).read_text())["spec"] | {"seed": 99}
    path.write_text(json.dumps(record | {"params": [repr(canonical_json(spec))]}))
    assert skew() == {BASIS: "is not the file its record describes"}


def test_a_stale_result_that_is_newer_than_its_inputs(here):
    """A merge that kept "ours": the result lies there as if fresh, but was made from another input."""
    page, table = "results/reports/tiny/index.html", "results/tables/tiny/table.json"
    rewrite(table, name="theirs")
    found = skew()
    assert page in found
    assert set(found.values()) == {f"was made from another {table}"}
    assert {str(Path(path).parent) for path in found} == {str(Path(page).parent)}
    later = time.time() + 60
    os.utime(table, (later, later))
    assert skew() == {}, "Snakemake itself compares an input that is newer"


@pytest.mark.parametrize("text", ["", "{", "null", "[]", "{}"])
def test_torn_edges_and_records(here, text):
    Path(BASIS).write_text(text)
    assert skew()[BASIS] == "cannot be read, or its record cannot"


@pytest.mark.parametrize("text", ["", "null", "{}"])
def test_empty_records(here, text):
    by_target(".snakemake/metadata")[BASIS].write_text(text)
    assert skew() == {BASIS: "cannot be read, or its record cannot"}


def test_leftovers_and_other_experiments_mislead_nobody(here):
    """Files that no rule of this configuration makes are not looked at: an edit left them, or another experiment's."""
    left = Path("artifacts/tiny-scenes/bases/former/layer-01/meta.json")
    shutil.copytree(Path(BASIS).parent, left.parent)
    assert skew() == {str(left): "has no record"}
    assert skew({BASIS}) == {}
    assert here.planned() == set()


def test_codes_of_another_basis(here):
    """Stale codes: a part that was pulled or kept from before its basis was refitted."""
    part = "artifacts/tiny-scenes/codes/kmeans-016/label/layer-01/fit_val/part-00000.json"
    inputs = json.loads(Path(part).read_text())["inputs"]
    rewrite(part, inputs=inputs | {BASIS: "0" * 64})
    assert skew()[part] == "is not the file its record describes"
    assert part in here.snakemake("-n", "all", status=1)


def test_a_lost_file_is_no_concern_of_the_guard(here):
    Path(BASIS).unlink()
    Path("results/tables/tiny/table.json").unlink()
    assert skew() == {}


def test_snakemake_refuses_and_says_why(here):
    shutil.rmtree(".snakemake/metadata")
    text = here.snakemake("-n", "all", status=1)
    assert "artifacts/tiny-scenes/" in text
    assert "has no record" in text
    assert "delete the files named, and run again" in text
    assert "dvc checkout" in text
    shutil.rmtree(here.root / ".dvc")
    assert not any("dvc" in line for line in complaint({"a": "b"}))


def test_touching_everything_blesses_nothing(here):
    here.edit("config.yaml", "n_clusters: 16", "n_clusters: 15")
    here.snakemake("--touch", "--forceall", "all")
    text = here.snakemake("-n", "all", status=1)
    assert "is not the file its record describes" in text


def test_records_without_artifacts_are_a_clone_before_the_pull(here):
    shutil.rmtree("artifacts")
    text = here.snakemake("-n", "report")
    assert "There are records but no artifacts" in text
    assert "Nothing to be done" in text
    assert len(here.planned("all")) > 80
