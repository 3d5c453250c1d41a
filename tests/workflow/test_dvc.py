"""Records and artifacts that travel: real DVC and Git over a project whose scripts are stubs.

Run by ``make test-dvc``; see ``versioned.py``.
"""

import json
import os
import re
import shutil
from pathlib import Path

import pytest
from versioned import CONFIG, copy_of, only_when_asked, small, version

pytestmark = [pytest.mark.dvc, pytest.mark.dag, pytest.mark.slow, only_when_asked]

AT = "artifacts/tiny-scenes"
EDITED = ("n_clusters: 16", "n_clusters: 15")
OF_THE_EDIT = {f"{family}@tiny-scenes-kmeans-016" for family in ("bases", "codes", "probes")}


@pytest.fixture(scope="session")
def origin(fresh, tmp_path_factory):
    """A project with everything built, recorded, committed, and pushed to a directory. Do not change it."""
    return version(small(fresh, tmp_path_factory.mktemp("origin")))


@pytest.fixture(scope="session")
def edited(origin, tmp_path_factory):
    """A clone with all artifacts in which one value was edited and run, not yet recorded. Do not change it."""
    clone = copy_of(origin, tmp_path_factory.mktemp("edited") / "all").clone()
    clone.dvc("pull")
    clone.edit("config.yaml", *EDITED)
    clone.snakemake("--quiet", "all", "--", "all")
    return clone


@pytest.fixture
def shared(origin, tmp_path):
    """A copy of the first, to be changed."""
    return copy_of(origin, tmp_path / "shared")


@pytest.fixture
def clone(shared):
    """A clone of it without artifacts."""
    return shared.clone()


@pytest.fixture
def after_the_edit(edited, tmp_path):
    """A copy of the second, to be changed."""
    return copy_of(edited, tmp_path / "after")


def stages(text):
    """The stages that ``dvc status`` lists, without their ``dvc.yaml``."""
    return {line.rstrip(":") for line in text.splitlines() if line.endswith(":") and "@" in line and line[0] != " "}


def objects(place):
    """The files of a DVC cache or remote that hold more than a listing."""
    return [path for path in place.rglob("*") if path.is_file() and not path.name.endswith((".dir", "gitignore"))]


def holding(place, file):
    """The object in a cache or remote with the content of ``file``."""
    wanted = file.read_bytes()
    (found,) = [path for path in objects(place) if path.read_bytes() == wanted]
    return found


def overwrite(path, data):
    """Damage a file as a disk would, mode included."""
    mode = path.stat().st_mode
    path.chmod(0o644)
    path.write_bytes(data)
    path.chmod(mode)


def test_a_clone_with_pulled_artifacts_has_nothing_to_do_whatever_the_times(origin, clone):
    clone.dvc("pull")
    assert clone.digests() == origin.digests()
    assert clone.planned() == set()
    files = sorted((p for p in (clone.root / "artifacts").rglob("*") if p.is_file()), key=lambda p: p.stat().st_mtime)
    times = [path.stat().st_mtime_ns for path in files]
    for path, time in zip(files, reversed(times), strict=True):
        os.utime(path, ns=(time, time))
    assert clone.planned() == set()
    assert "Data and pipelines are up to date" in clone.dvc("status")
    assert clone.changed() == set()
    assert "all as recorded" in clone.verify()


def test_a_clone_without_artifacts_has_its_results_and_is_told_of_the_pull(origin, clone):
    page = "results/reports/tiny/index.html"
    assert (clone.root / page).read_bytes() == (origin.root / page).read_bytes()
    assert (clone.root / "results/tables/tiny/table.json").is_file()
    text = clone.snakemake("-n", "all")
    assert "There are records but no artifacts: `dvc pull` fetches these" in text
    assert len(clone.planned("all")) > 40
    assert "Nothing to be done" in clone.snakemake("-n", "report")


def test_an_edit_changes_exactly_its_stages_and_files(edited):
    changed = stages(edited.dvc("status"))
    assert changed == OF_THE_EDIT
    paths = edited.changed() - {"config.yaml"}
    of_it = {path for path in paths if "/kmeans-016" in path}
    assert {str(Path(path).parent) for path in paths - of_it} == {
        "results/tables/tiny", "results/reports/tiny", "results/galleries/tiny/tiny-scenes",
    }  # fmt: skip
    assert {path.split("/")[3] for path in of_it} == {"kmeans-016", "kmeans-016-random"}
    assert not any("pca" in path for path in paths)
    parameters = json.loads(edited.dvc("params", "diff", "--json"))["config.yaml"]
    assert parameters == {"bases.kmeans-016.n_clusters": {"old": 16, "new": 15, "diff": -1}}
    (metrics,) = json.loads(edited.dvc("metrics", "diff", "--json")).values()
    assert metrics
    assert all("kmeans-016" in name for name in metrics)
    assert "n_clusters" in edited.dvc("params", "diff")


def test_going_back_brings_the_former_artifacts_without_a_refit(origin, after_the_edit):
    clone = after_the_edit
    clone.commit("Fifteen clusters")
    latest = clone.digests()
    assert latest != origin.digests()
    clone.git("checkout", "--quiet", "HEAD~1")
    text = clone.snakemake("-n", "all", status=1)
    assert "stem from different runs" in text
    assert "dvc checkout" in text
    clone.dvc("checkout")
    assert clone.digests() == origin.digests()
    assert clone.planned() == set()
    clone.git("switch", "--quiet", "main")
    clone.dvc("checkout")
    assert clone.digests() == latest
    assert clone.planned() == set()


def test_dvc_that_moved_without_git_is_refused_too(after_the_edit):
    after_the_edit.commit("Fifteen clusters")
    after_the_edit.git("checkout", "HEAD~1", "--", "dvc.lock")
    after_the_edit.dvc("checkout")
    text = after_the_edit.snakemake("-n", "all", status=1)
    assert f"{AT}/bases/kmeans-016" in text
    assert "is not the file its record describes" in text


def test_an_edit_that_ran_is_undone_without_a_commit(origin, after_the_edit):
    after_the_edit.git("checkout", "--quiet", ".")
    after_the_edit.dvc("checkout", "--force")
    assert after_the_edit.digests() == origin.digests()
    assert after_the_edit.planned() == set()
    assert after_the_edit.changed() == set()


def test_an_old_commit_that_is_not_in_the_cache_is_pulled(origin, after_the_edit):
    """In a clone whose cache never saw the artifacts before the edit."""
    after_the_edit.commit("Fifteen clusters")
    after_the_edit.dvc("push")
    third = after_the_edit.clone("third")
    third.dvc("pull")
    assert third.digests() == after_the_edit.digests()
    assert third.planned() == set()
    third.git("checkout", "--quiet", "HEAD~1")
    third.dvc("pull")
    assert third.digests() == origin.digests()
    assert third.planned() == set()


@pytest.mark.parametrize(
    ("targets", "directories"),
    [
        (["bases"], {"bases"}),
        (["images", "model", "stores", "moments"], {"images", "model", "saev", "moments"}),
        (["bases@tiny-scenes-pca"], {"bases"}),
        ([f"{AT}/saev"], {"saev"}),
    ],
)
def test_partial_pulls(origin, clone, targets, directories):
    clone.dvc("pull", *targets)
    found = clone.digests()
    assert {Path(path).parts[2] for path in found} == directories
    assert found.items() <= origin.digests().items()
    if targets == ["bases@tiny-scenes-pca"]:
        assert {Path(path).parts[3] for path in found} == {"pca", "pca-random"}


def test_what_lies_above_an_edit_is_enough_to_run_it(clone):
    clone.dvc("pull", "images", "model", "stores", "moments")
    clone.edit("config.yaml", *EDITED)
    target = f"{AT}/bases/kmeans-016/layer-01/meta.json"
    assert clone.planned(target) == {f"fit {target}"}
    clone.snakemake("--quiet", "all", "--", target, f"{AT}/bases/kmeans-016-random/layer-01/meta.json")
    assert "recorded" in clone.keep("bases@tiny-scenes-kmeans-016")
    lock = (clone.root / "dvc.lock").read_text()
    assert "n_clusters: 15" in lock
    assert "n_clusters: 16" in lock  # of codes and probes, which were not recorded again


def test_a_damaged_object_in_the_remote_fails_the_pull(origin, clone):
    remote = clone.root.parent / "eigenloom-dvc"
    lost = f"{AT}/bases/pca/layer-01/arrays.safetensors"
    overwrite(holding(remote, origin.root / lost), b"damaged")
    text = clone.dvc("pull", status=1)
    assert "failed to pull" in text.lower()
    assert not (clone.root / lost).exists()


def test_damage_in_the_cache_or_to_a_pulled_file_is_named(clone):
    clone.dvc("pull")
    path = f"{AT}/bases/pca/layer-01/arrays.safetensors"
    file = clone.root / path
    overwrite(holding(clone.root / ".dvc/cache", file), b"arrays.safetensors " + b"0" * 64 + b"\n")
    shutil.rmtree(file.parents[1])
    clone.dvc("checkout")
    assert f"{path}: its sha256 is not the one in meta.json" in clone.verify(status=1)
    clone.dvc("pull", "--force")
    overwrite(file, b"short")
    text = clone.verify(status=1)
    assert f"{path}: 5 bytes, expected" in text
    assert text.count("arrays.safetensors") == 1


def test_what_is_not_done_is_not_recorded(shared):
    shared.edit("config.yaml", *EDITED)
    text = shared.keep(status=1)
    assert "error: config.yaml asks for " in text
    assert "jobs that are not done; run `snakemake all` first" in text
    assert (shared.root / "dvc.lock").read_text() == shared.git("show", "HEAD:dvc.lock")


def test_recording_twice_changes_nothing_and_runs_nothing(shared):
    before = shared.digests()
    assert "recorded; 0 files are staged" in shared.keep()
    assert shared.digests() == before
    assert shared.changed() == set()


def test_what_is_no_longer_asked_for_is_no_longer_versioned(shared):
    shared.edit("config.yaml", "materialize: [label, topk]", "materialize: [label]")
    shared.snakemake("--quiet", "all", "--", "all")
    shared.commit("No Top-K codes")
    listed = shared.dvc("stage", "list")
    assert "codes@tiny-scenes-kmeans-016" in listed
    assert "codes@tiny-scenes-pca" not in listed
    shared.dvc("push")
    clone = shared.clone()
    clone.dvc("pull")
    assert not (clone.root / AT / "codes/pca").exists()
    assert clone.planned() == set()


def test_a_merge_of_two_edits(shared):
    """The table and the report of both sides are wrong after it; where one side's are kept, the guard names them."""
    shared.git("switch", "--quiet", "-c", "theirs")
    shared.edit("config.yaml", "{kind: pca,", "{kind: pca, whiten: true,")
    shared.snakemake("--quiet", "all", "--", "all")
    shared.commit("Whiten")
    shared.git("switch", "--quiet", "main")
    shared.dvc("checkout")
    shared.edit("config.yaml", *EDITED)
    shared.snakemake("--quiet", "all", "--", "all")
    shared.commit("Fifteen clusters")

    text = shared.git("merge", "theirs", status=1)
    assert "results/tables/tiny/table.json" in text
    config = shared.git("show", "theirs:config.yaml").replace(*EDITED)
    (shared.root / "config.yaml").write_text(config)
    shared.git("add", "config.yaml")
    conflicts = shared.git("diff", "--name-only", "--diff-filter=U").split()
    assert all(path.startswith(("results/", ".snakemake/metadata/")) for path in conflicts), conflicts
    shared.git("checkout", "--ours", "--", *conflicts)
    shared.dvc("checkout", "--force")
    text = shared.snakemake("-n", "all", status=1)
    assert f"{sum(path.startswith('results/') for path in conflicts)} file(s) and Snakemake's records" in text
    assert re.search(r"results/\S+ was made from another results/tiny-scenes/", text)
    shared.git("rm", "--quiet", "-f", "--", *conflicts)
    planned = shared.planned()
    assert {job.split()[0] for job in planned} == {"tabulate", "illustrate", "render"}
    shared.snakemake("--quiet", "all", "--", "all")
    shared.commit("Both")
    assert shared.planned() == set()
    assert shared.changed() == set()


def test_an_experiment_that_shares_recordings_is_recorded_with_what_is_its_own(shared):
    config = "workflow/experiments/more/config.yaml"
    (shared.root / config).parent.mkdir()
    (shared.root / config).write_text(
        CONFIG.replace("name: tiny", "name: more")
        .replace("kmeans-016: {kind: kmeans, n_clusters: 16,", "kmeans-008: {kind: kmeans, n_clusters: 8,")
        .replace("  pca: {kind: pca, codings: [topk]}\n", "")
    )
    shared.snakemake("--quiet", "all", "--configfile", config, "--", "all")
    shared.dvc("checkout")  # what was never recorded is in nobody's way
    assert (shared.root / AT / "bases/kmeans-008").is_dir()

    shared.keep("--config", config)
    shared.git("commit", "--quiet", "--message", "Eight clusters")
    listed = [line.split()[0] for line in shared.dvc("stage", "list", "--all").splitlines()]
    owned = {line.rpartition(":")[2] for line in listed if line.startswith("workflow/experiments/more/dvc.yaml:")}
    assert owned == {f"{family}@tiny-scenes-kmeans-008" for family in ("bases", "codes", "probes")}, listed
    assert "up to date" in shared.dvc("status")
    shared.dvc("push")
    clone = shared.clone()
    clone.dvc("pull")
    assert clone.digests() == shared.digests()
    assert clone.planned() == set()
    assert clone.planned("all", "--configfile", config) == set()

    clone.edit(config, "seed: 0", "seed: 1")
    text = clone.keep("--config", config, status=1)
    assert "share it, but draw differs in seed (0 and 1); rename one of them" in text
