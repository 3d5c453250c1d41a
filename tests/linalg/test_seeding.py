"""Greedy k-means++ finds planted clusters, draws by weight, and survives duplicates."""

import torch
from sklearn.cluster import kmeans_plusplus

from eigenloom.batches import generator
from eigenloom.linalg.seeding import draw_by_weight, greedy_kmeans_plusplus


def potential(x, ids):
    return torch.cdist(x.double(), x[ids].double()).square().amin(1).sum()


def test_every_planted_blob_gets_a_seed():
    random = torch.Generator().manual_seed(0)
    labels = torch.arange(40).repeat(25)
    x = 20 * torch.randn(40, 8, generator=random)[labels] + 0.3 * torch.randn(1000, 8, generator=random) + 1000
    ids = greedy_kmeans_plusplus(x, 40, generator(0, "seeding"))
    assert ids.unique().numel() == 40
    assert labels[ids].unique().numel() == 40
    assert torch.equal(ids, greedy_kmeans_plusplus(x, 40, generator(0, "seeding")))
    assert not torch.equal(ids, greedy_kmeans_plusplus(x, 40, generator(1, "seeding")))


def test_it_is_as_good_as_another_implementation_and_better_than_one_trial():
    x = torch.randn(800, 6, generator=torch.Generator().manual_seed(1)) ** 3
    ours = [potential(x, greedy_kmeans_plusplus(x, 30, generator(s, "seeding"))) for s in range(8)]
    single = [potential(x, greedy_kmeans_plusplus(x, 30, generator(s, "seeding"), n_trials=1)) for s in range(8)]
    theirs = [
        potential(x, torch.from_numpy(kmeans_plusplus(x.numpy(), 30, random_state=s)[1]).long()) for s in range(8)
    ]
    assert sum(ours) < 1.03 * sum(theirs)
    assert sum(ours) < 0.97 * sum(single)


def test_fewer_distinct_rows_than_clusters_end_in_duplicates():
    x = torch.tensor([[1.0, 0], [0, 1], [0, 0]]).repeat(10, 1)
    ids = greedy_kmeans_plusplus(x, 7, generator(0, "seeding"))
    assert len(ids) == 7
    assert x[ids].unique(dim=0).shape == (3, 2)


def test_draws_follow_the_weights_and_are_uniform_without_any():
    uniforms = torch.linspace(0, 1, 4001, dtype=torch.float64)[:-1]
    shares = torch.bincount(draw_by_weight(torch.tensor([0.0, 1, 0, 3, 0]), uniforms), minlength=5) / 4000
    assert shares.tolist() == [0, 0.25, 0, 0.75, 0]
    assert torch.bincount(draw_by_weight(torch.zeros(4), uniforms)).tolist() == [1000] * 4
