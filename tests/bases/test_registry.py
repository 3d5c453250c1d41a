"""The registry finds kinds without importing them, and knows each kind's floor."""

import subprocess
import sys

import pytest

from eigenloom.bases.registry import KINDS, basis_class, find_kind, floor_of
from eigenloom.errors import ConfigError


def test_every_kind_is_where_the_registry_says():
    for kind, entry in KINDS.items():
        cls = basis_class(kind)
        assert (cls.kind, cls.geometry, cls.__name__) == (kind, entry.geometry, entry.name)


def test_an_unknown_kind_is_named_with_the_known_ones():
    known = "dictionary, kernel_pca, kmeans, pca, random_directions, robust_pca, sae, srht_pca"
    with pytest.raises(ConfigError, match=f"'kmaens' is not a kind of basis; known: {known}"):
        find_kind("kmaens")


def test_floors_are_random_bases_of_the_same_size():
    floor = floor_of("kmeans", {"n_clusters": 7, "max_iter": 50})
    assert (floor["kind"], floor["n_clusters"], floor["init"], floor["max_iter"]) == ("kmeans", 7, "random", 0)
    assert floor_of("pca", {"n_components": 5, "whiten": True}) == {"kind": "random_directions", "n_components": 5}
    assert floor_of("pca", {}) == {"kind": "random_directions"}
    floor = floor_of("kernel_pca", {"n_components": 9, "kernel": "poly", "landmark_choice": "k-means++"})
    assert floor == {
        "kind": "kernel_pca", "n_components": 9, "kernel": "poly", "landmark_choice": "uniform", "directions": "random",
    }  # fmt: skip
    sae = {"n_components": 9, "n_active": 3, "lr": 0.1, "steps": 100}
    assert floor_of("sae", sae) == {"kind": "sae", "n_components": 9, "n_active": 3, "steps": 0}
    assert floor_of("dictionary", {"path": "x"}) == {"kind": "dictionary", "path": "x", "random": True}


def test_the_registry_loads_no_torch():
    code = "import sys, eigenloom.bases.registry, eigenloom.provenance; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, env={"PYTHONPATH": ":".join(sys.path)})
