"""After a whole run on the cluster, an edit makes exactly its jobs, and only those are submitted."""

import re
import shutil
from pathlib import Path

import pytest
from checkout import TINY, artifact_digests, snakemake
from cluster_runs import ClusterRun, edit

pytestmark = [pytest.mark.slurm, pytest.mark.slow]

TARGET = "results/tiny-scenes/layer-01/pca/reconstruction.json"


def test_an_edit_of_one_basis_submits_its_jobs_alone(slurm, whole, tmp_path):
    checkout = Path(shutil.copytree(whole.checkout, tmp_path / "edited", symlinks=True))
    edit(checkout, lambda config: config["bases"]["pca"].update(tol=0.01))
    planned = snakemake(checkout, "-n", "all", "--configfile", TINY).stdout
    assert set(re.findall(r"^rule (\w+):", planned, re.M)) == {
        "fit", "evaluate", "encode_topk", "join_codes", "probe", "score", "tabulate", "illustrate", "render",
        "all",
    }  # fmt: skip
    before = artifact_digests(checkout)
    with ClusterRun(checkout) as run:
        run.start(TARGET, "--configfile", TINY, "--config", "device=auto")
        assert run.wait() == 0, run.said()
        assert [note["out"] for note in run.notes()] == ["artifacts/tiny-scenes/bases/pca/layer-01/meta.json", TARGET]
        after = artifact_digests(checkout)
        changed = {name for name in after if after[name] != before.get(name)}
        assert {str(Path(name).parent) for name in changed} == {"tiny-scenes/bases/pca/layer-01"}
