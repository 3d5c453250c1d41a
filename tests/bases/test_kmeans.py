"""k-means: objective, seeding, relocation, invariance to the cut, resuming, and the errors a user meets."""

import itertools
import os
import signal
import subprocess
import sys

import pytest
import torch

from eigenloom.bases.base import load_basis, save_basis
from eigenloom.bases.kmeans import KMeans
from eigenloom.bases.kmeans_settings import Settings
from eigenloom.bases.registry import floor_of
from eigenloom.errors import ConfigError, DataError, Interrupted
from eigenloom.linalg import assignment
from eigenloom.linalg.assignment import assign_reference
from eigenloom.moments import Moments, Standardization, StandardizedRows
from eigenloom.progress import Progress
from eigenloom.sources.arrays import ArrayRows

FIELDS = (
    "cluster_centers", "counts", "utility", "inertia_history", "lr_history", "relocated_history",
    "utilisation_history",
)  # fmt: skip


def blobs(n=3000, d=12, k=20, noise=0.3, seed=0):
    random = torch.Generator().manual_seed(seed)
    centers = 3 * torch.randn(k, d, generator=random)
    labels = torch.randint(k, (n,), generator=random)
    return centers[labels] + noise * torch.randn(n, d, generator=random), centers, labels


def weak(n=3000, d=16):
    return torch.randn(n, d, generator=torch.Generator().manual_seed(5)) * torch.arange(1, d + 1).pow(-0.7)


def fit(x, seed=0, cut=700, **parameters):
    return KMeans.fit(ArrayRows(x, cut), seed=seed, **parameters)


def assert_same(one, two):
    assert {f: torch.equal(getattr(one, f), getattr(two, f)) for f in FIELDS} == dict.fromkeys(FIELDS, True)
    assert one.inertia == two.inertia


def assert_consistent(basis, x):
    """Counts, utility and inertia belong to the stored centres."""
    exact = assign_reference(x, basis.cluster_centers)
    assert basis.inertia == pytest.approx(float(exact.sq_distances.double().sum()), rel=1e-5)
    assert (basis.counts - torch.bincount(exact.labels, minlength=len(basis.counts))).abs().sum() <= 2
    utility = torch.zeros_like(basis.utility).index_add_(0, exact.labels, exact.gaps.double())
    torch.testing.assert_close(basis.utility, utility, rtol=1e-3, atol=1e-3 * float(utility.max()))
    assert basis.inertia == pytest.approx(float(basis.inertia_history.min()), rel=1e-6)


@pytest.mark.parametrize("parameters", [{}, {"algorithm": "minibatch", "batch_size": 256}, {"precision": "screen"}])
def test_planted_blobs_are_recovered(parameters):
    x, centers, labels = blobs()
    basis = fit(x, n_clusters=20, **parameters)
    assert (torch.cdist(centers, basis.cluster_centers).amin(1) < 0.2).all()
    found, distances = basis.assign(x)
    assert found.dtype == torch.int32
    assert len(torch.stack([labels, found.long()]).unique(dim=1).T) == 20
    assert float(distances.double().sum()) == pytest.approx(basis.inertia, rel=1e-6)
    if parameters.get("precision") != "screen":
        assert_consistent(basis, x)


def test_inertia_never_rises_over_lloyd_passes():
    x = weak()
    basis = fit(x, n_clusters=64, relocate=0.0, n_init=1, init="random", max_iter=20, tol=0.0)
    history = basis.inertia_history
    assert len(history) == 21
    assert (history[1:] <= history[:-1] * (1 + 1e-7)).all()
    assert history[-1] < 0.8 * history[0]
    assert_consistent(basis, x)


def test_a_lloyd_pass_is_a_lloyd_pass():
    x = weak(500)
    start = x[:7]
    basis = fit(x, init=start, max_iter=1, relocate=0.0)
    labels = assign_reference(x, start).labels
    means = torch.stack([x[labels == j].double().mean(0) for j in range(7)]).float()
    torch.testing.assert_close(basis.cluster_centers, means, rtol=1e-6, atol=1e-7)
    assert basis.lr_history.tolist() == [[1, 1, 1], [0, 0, 0]]


def test_more_clusters_leave_less_unexplained():
    x, _, _ = blobs(n=2000, k=64, noise=0.8)
    inertia = [fit(x, n_clusters=k, n_init=2, max_iter=20).inertia for k in (2, 4, 8, 16, 32, 64)]
    assert all(more <= 1.01 * less for less, more in itertools.pairwise(inertia))


def test_it_is_no_worse_than_scikit_learn():
    from sklearn.cluster import KMeans as Peer

    x = weak()
    ours = [fit(x, seed=s, n_clusters=50, n_init=1).inertia for s in range(4)]
    theirs = [Peer(50, n_init=1, random_state=s).fit(x.numpy()).inertia_ for s in range(4)]
    assert sum(ours) < 1.005 * sum(theirs)


def test_relocation_repairs_seeds_in_one_blob():
    x, centers, labels = blobs()
    start = x[labels == 0][:20]
    stuck = fit(x, init=start, relocate=0.0)
    repaired = fit(x, init=start, relocate=0.2)
    assert stuck.inertia > 3 * repaired.inertia
    assert (torch.cdist(centers, repaired.cluster_centers).amin(1) < 0.2).all()
    assert repaired.relocated_history[0] == 0
    assert repaired.relocated_history[1] == 4
    assert repaired.relocated_history[11:].sum() == 0
    assert repaired.relocated_history[-2:].sum() == 0


def test_as_many_clusters_as_rows_leave_nothing():
    x = weak(60)
    basis = fit(x, n_clusters=60)
    assert basis.inertia == 0
    assert torch.equal(basis.decode(basis.encode(x)), x)


def test_one_cluster_is_the_mean():
    x = weak(400) + 10
    basis = fit(x, n_clusters=1)
    torch.testing.assert_close(basis.cluster_centers[0], x.double().mean(0).float(), rtol=1e-6, atol=1e-7)
    assert basis.diagnostics()["utilisation_entropy"] == 1
    assert basis.utility.tolist() == [0]


@pytest.mark.parametrize("learning_rate", ["decay", "count", "ema"])
def test_mini_batch_updates_follow_their_formulas(learning_rate):
    x = weak(60, 4)
    start, decay, ema = x[:3], 0.9, 0.25
    basis = fit(
        x, init=start, algorithm="minibatch", batch_size=20, minibatch_iter=1, polish_iter=0, relocate=0.0,
        learning_rate=learning_rate, decay=decay, ema=ema,
    )  # fmt: skip
    from eigenloom.batches import generator

    centers, mass, rates = start.double(), torch.full((3,), float(learning_rate == "ema")), torch.zeros(3)
    sums = centers * mass[:, None]
    batches = torch.cat(list(ArrayRows(x).shuffled(generator(0, "shuffle", 0)))).split(20)
    for batch in batches:
        labels = assign_reference(batch, centers.float()).labels
        for j in labels.unique().tolist():
            rows = batch[labels == j].double()
            if learning_rate == "ema":
                sums[j] = (1 - ema) * sums[j] + ema * rows.sum(0)
                mass[j] = (1 - ema) * mass[j] + ema * len(rows)
                centers[j], rates[j] = sums[j] / mass[j], ema * len(rows) / mass[j]
            else:
                mass[j] = mass[j] * (decay if learning_rate == "decay" else 1) + len(rows)
                rates[j] = len(rows) / mass[j]
                centers[j] += rates[j] * (rows.mean(0) - centers[j])
    torch.testing.assert_close(basis.cluster_centers, centers.float(), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(basis.lr_history[0].float(), torch.stack([rates.min(), rates.median(), rates.max()]))


@pytest.mark.parametrize("parameters", [{}, {"algorithm": "minibatch", "batch_size": 300, "minibatch_iter": 2}])
def test_the_cut_into_batches_changes_no_bit(parameters):
    x = weak(5000)
    one, *others = (fit(x, cut=b, n_clusters=24, max_iter=12, **parameters) for b in (5000, 613, 2048))
    for other in others:
        assert_same(one, other)


def test_known_moments_spare_a_read_and_change_no_bit():
    x = weak(900) * 7 + 3
    centered = x.double() - x.double().mean(0)
    moments = Moments(900, x.double().mean(0), centered.T @ centered, x.amin(0), x.amax(0))
    standardization = Standardization.from_moments(moments, "standard", "layer-03")
    reads = []

    class Counted(ArrayRows):
        def __iter__(self):
            reads.append(1)
            return super().__iter__()

    bases, n_reads = [], []
    for known in (moments, None):
        reads.clear()
        rows = StandardizedRows(Counted(x), standardization, known)
        bases.append(KMeans.fit(rows, seed=0, n_clusters=9, max_iter=3, tol=0.0))
        n_reads.append(len(reads))
    assert n_reads == [4, 5]
    assert_same(*bases)
    assert bases[0].standardization.digest == standardization.digest


def test_the_order_of_rows_changes_nothing_when_seeds_are_fixed():
    x = weak(5000)
    one, other = (fit(rows, init=x[:16], max_iter=6, relocate=0.0) for rows in (x, x.flip(0)))
    assert torch.equal(one.counts, other.counts)
    torch.testing.assert_close(one.cluster_centers, other.cluster_centers, rtol=1e-6, atol=1e-6)
    assert one.inertia == pytest.approx(other.inertia, rel=1e-9)


PROCESS = """
import os, sys, torch, torch.distributed as dist
from eigenloom.bases.base import save_basis
from eigenloom.bases.kmeans import KMeans
from eigenloom.sources.arrays import ArrayRows

torch.set_num_threads(1)
world, rank, store, out = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], sys.argv[4]
if world > 1:
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=world)
x = torch.randn(9000, 8, generator=torch.Generator().manual_seed(3)) ** 3
for name, more in {"lloyd": {"max_iter": 5}, "mini": {"algorithm": "minibatch", "minibatch_iter": 2}}.items():
    basis = KMeans.fit(ArrayRows(x), seed=1, n_clusters=30, init="random", n_init=1, **more)
    if rank == 0:
        save_basis(basis, f"{out}/{name}")
if world > 1:
    dist.destroy_process_group()
"""


@pytest.mark.skipif(not torch.distributed.is_available(), reason="torch was built without distributed")
def test_two_processes_are_one(tmp_path):
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    running = [
        subprocess.Popen(
            [sys.executable, "-c", PROCESS, str(world), str(rank), str(tmp_path / "store"), str(tmp_path / str(world))],
            env=environment,
        )
        for world, rank in ((1, 0), (2, 0), (2, 1))
    ]
    assert [process.wait(120) for process in running] == [0, 0, 0]
    for name in ("lloyd", "mini"):
        one, two = ((tmp_path / world / name / "arrays.safetensors").read_bytes() for world in "12")
        assert one == two
        assert load_basis(tmp_path / "2" / name).relocated_history.sum() > 0


def test_features_of_very_different_size_keep_their_digits():
    x = weak(600, 4) * torch.tensor([1e-6, 1.0, 1e3, 1e6])
    basis = fit(x, init=x[:3], max_iter=1, relocate=0.0)
    labels = assign_reference(x, x[:3]).labels
    means = torch.stack([x[labels == j].double().mean(0) for j in range(3)]).float()
    torch.testing.assert_close(basis.cluster_centers, means, rtol=1e-6, atol=0)


class Killer(Progress):
    """Sends SIGTERM after a number of blocks, as a scheduler would."""

    def __init__(self, blocks):
        self.left = blocks

    def track(self, batches, label, total):
        for batch in batches:
            self.left -= 1
            if self.left == 0:
                os.kill(os.getpid(), signal.SIGTERM)
            yield batch


@pytest.mark.parametrize(
    ("parameters", "moments_of_death"),
    [
        ({"max_iter": 6, "relocate": 0.3, "init": "random", "n_init": 1}, (1, 2, 5, 9)),
        ({"algorithm": "minibatch", "batch_size": 500, "minibatch_iter": 2, "polish_iter": 2}, (3, 11, 13, 21)),
        ({"max_iter": 2, "precision": "screen", "n_init": 2}, (2, 10)),
    ],
)
def test_killed_and_resumed_is_uninterrupted(tmp_path, parameters, moments_of_death):
    x = weak(5000)
    whole = fit(x, n_clusters=24, **parameters)
    for blocks in moments_of_death:
        path = tmp_path / "fit.safetensors"
        with pytest.raises(Interrupted):
            fit(x, n_clusters=24, resume=path, progress=Killer(blocks), **parameters)
        assert path.exists()
        assert_same(whole, fit(x, n_clusters=24, resume=path, cut=900, **parameters))
        assert not path.exists()


def test_the_search_for_seeds_resumes_too(tmp_path, monkeypatch):
    from eigenloom.bases import kmeans_start

    x = weak(1500)
    whole = fit(x, n_clusters=10, max_iter=3)
    calls = []
    original = kmeans_start.greedy_kmeans_plusplus

    def killed(*arguments):
        calls.append(1)
        if len(calls) == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return original(*arguments)

    monkeypatch.setattr(kmeans_start, "greedy_kmeans_plusplus", killed)
    path = tmp_path / "fit.safetensors"
    with pytest.raises(Interrupted, match="seeding"):
        fit(x, n_clusters=10, max_iter=3, resume=path)
    assert_same(whole, fit(x, n_clusters=10, max_iter=3, resume=path))
    assert len(calls) == 4


def test_the_floor_is_random_rows_with_honest_figures():
    x = weak(400)
    floor = floor_of("kmeans", {"n_clusters": 8})
    floor.pop("kind")
    one, again, other = fit(x, **floor), fit(x, **floor), fit(x, seed=1, **floor)
    assert_same(one, again)
    assert not torch.equal(one.cluster_centers, other.cluster_centers)
    assert (one.cluster_centers[:, None] == x).all(2).any(1).all()
    assert_consistent(one, x)


def test_duplicated_rows_end_as_dead_clusters():
    x = torch.tensor([[1.0, 0], [0, 1], [0, 0]]).repeat(50, 1)
    basis = fit(x, n_clusters=5)
    assert basis.inertia == 0
    assert basis.diagnostics()["dead"] == 2
    assert (basis.counts > 0).sum() == 3


def test_codes_and_distances(tmp_path):
    x = weak(600)
    basis = fit(x, n_clusters=11, max_iter=5)
    codes, (labels, distances) = basis.encode(x), basis.assign(x)
    assert codes.shape == (600, 11)
    assert codes.dtype == torch.float32
    assert torch.equal(codes.argmax(1).int(), labels)
    assert codes.sum(1).eq(1).all()
    torch.testing.assert_close((x - basis.decode(codes)).square().sum(1), distances)
    assert torch.equal(basis.squared_distances(x).amin(1), distances)
    half = basis.assign(x.half())
    torch.testing.assert_close(half[1], basis.assign(x.half().float())[1])
    save_basis(basis, tmp_path / "b")
    assert_same(basis, load_basis(tmp_path / "b"))


def test_diagnostics_describe_the_sizes():
    x = torch.cat([torch.zeros(97, 2), torch.tensor([[9.0, 0], [0, 9], [9, 9]])]) + 1e-3 * weak(100, 2)
    found = fit(x, n_clusters=4).diagnostics()
    assert found["largest_share"] == pytest.approx(0.97)
    assert found["utilisation_entropy"] < 0.2
    assert found["dead"] == 0


def test_precision_exact_is_the_same_by_either_implementation(monkeypatch):
    x, _, _ = blobs()
    plain = fit(x, n_clusters=20)
    monkeypatch.setattr(assignment, "screen_wins", lambda *_: True)
    screened = fit(x, n_clusters=20)
    assert torch.equal(plain.counts, screened.counts)
    torch.testing.assert_close(plain.cluster_centers, screened.cluster_centers, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ((7, 3, float("nan")), "batch 1, row 7, feature 3 is NaN; 1 entries of 50 rows"),
        ((4, 0, float("inf")), "batch 0, row 4, feature 0 is Inf"),
    ],
)
def test_what_is_not_a_number_is_found(change, message):
    x = weak(50)
    x[change[0], change[1]] = change[2]
    with pytest.raises(DataError, match=message):
        fit(x, cut=5, n_clusters=4)


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (weak(5), "6 clusters cannot be fitted to 5 rows; lower n_clusters"),
        (torch.ones(50, 3), "all 3 features are constant over 50 rows"),
    ],
)
def test_rows_that_cannot_be_clustered(x, message):
    with pytest.raises(DataError, match=message):
        fit(x, n_clusters=6)


def test_a_single_row():
    with pytest.raises(DataError, match="1 row cannot be clustered"):
        fit(weak(1), n_clusters=1)


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"n_cluster": 3}, "no parameter 'n_cluster'; it takes n_clusters"),
        ({"n_clusters": 0}, "n_clusters: 0 is not a whole number of at least 1"),
        ({"n_clusters": 2.0}, "n_clusters: 2.0 is not a whole number"),
        ({"algorithm": "elkan"}, "algorithm: 'elkan' is unknown; use lloyd or minibatch"),
        ({"relocate": 1.5}, "relocate: 1.5 is not a number from 0 to 1"),
        ({"n_clusters": 9, "init_rows": 8}, "8 rows cannot seed 9 clusters"),
        ({"init": torch.zeros(3, 2)}, "init: centres have 2 features where rows have 16"),
        ({"init": torch.zeros(3, 16), "n_clusters": 4}, "do not fit the other parameters"),
    ],
)
def test_parameters_are_checked(parameters, message):
    with pytest.raises(ConfigError, match=message):
        fit(weak(50), **parameters)


def test_rows_of_another_width():
    basis = fit(weak(50), n_clusters=3)
    with pytest.raises(DataError, match=r"rows of shape \(4, 5\) cannot be encoded: this basis takes \[b, 16\]"):
        basis.assign(torch.zeros(4, 5))


@pytest.mark.parametrize(("parameters", "rows"), [
    ({"n_clusters": 4}, 16_384), ({"n_clusters": 4096}, 40_960), ({"n_clusters": 4, "init_rows": 7}, 7),
])  # fmt: skip
def test_seeding_sees_ten_rows_per_centre_and_never_few(parameters, rows):
    assert Settings.parse(parameters).init_rows == rows
