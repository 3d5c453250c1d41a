"""Findings follow from the numbers: when the numbers turn, so do the sentences."""

import pytest
from made_up_results import documents, path_of, reconstruction

from eigenloom.report.evidence import Evidence
from eigenloom.report.findings import compare, find, leading_codings
from eigenloom.report.tables import tabulate


def evidence(found, reconstructions=None):
    return Evidence(tables=[tabulate(found)], metrics=found, reconstructions=reconstructions or {})


def sentences(found, tone=None, **more):
    return [f.text for f in find(evidence(found, **more)) if tone in (None, f.tone)]


def test_random_directions_that_beat_pca_are_said_to_and_the_sentence_flips():
    (wins,) = [text for text in sentences(documents(), "warning") if "beat pca" in text]
    assert wins.startswith(
        "Random wins: random directions of the same number beat pca (dense, layer-03): Probe R 0.500"
    )
    assert "against 0.550" in wins
    assert "of its 2 codings there, 0 beat their own floor" in wins
    flipped = sentences(documents(pca={"value": 0.6, "floor": 0.2}), "good")
    assert any(text.startswith("pca (dense, layer-01) beats random directions of the same number") for text in flipped)
    assert not any("Random wins" in text for text in sentences(documents(pca={"value": 0.6, "floor": 0.2})))


def test_ties_at_three_decimals_are_not_wins():
    tied = sentences(documents(pca={"value": 0.40004, "floor": 0.40001}), "warning")
    assert any("equals random directions" in text for text in tied)
    assert [compare(0.4004, 0.3996), compare(0.41, 0.4), compare(0.4, 0.41)] == [0, 1, -1]


def test_beating_the_floor_below_zero_is_no_praise():
    found = documents(pca={"value": -0.02, "floor": -0.08})
    (text,) = [text for text in sentences(found, "plain") if text.startswith("pca") and "beats" in text]
    assert text.endswith("Yet it predicts labels no better than class frequencies do.")


def test_kmeans_floor_is_called_what_it_is():
    assert any("beats random training rows as centres" in text for text in sentences(documents(), "good"))


def test_the_preferred_method_is_chosen_on_train_and_read_on_validation():
    found = documents()
    found[path_of("layer-01", "kmeans-004", "onehot")]["metrics"] |= {"probe_r_train": 0.99, "probe_r": -0.25}
    first = sentences(found)[0]
    assert "prefers the features of kmeans-004 (onehot, layer-01)" in first
    assert "no better than class frequencies do (Probe R -0.250)" in first
    assert "they remove 50.0 % of the label entropy" in sentences(documents())[0]
    assert "a constant score has 0.333" in first
    assert leading_codings(evidence(found), "s")["kmeans-004"][0]["coding"] == "onehot"


def test_layers():
    assert any("Every basis knows most at layer-03" in text for text in sentences(documents()))
    found = documents()
    found[path_of("layer-01", "pca", "dense")]["metrics"]["probe_r_train"] = 0.95
    assert any("Bases differ in the layer" in text and "layer-01 for pca" in text for text in sentences(found))


def test_a_result_without_floor_cannot_be_judged():
    found = documents(pca={"with_floor": False})
    for document in found.values():
        document["is_floor"] = False
    assert any("pca" in text and "has no random floor" in text for text in sentences(found, "warning"))


@pytest.mark.parametrize(("collapsed", "words"), [(True, "has collapsed"), (False, "meet no row of fit_val: 1 of")])
def test_clusters(collapsed, words):
    document = reconstruction("layer-01", "kmeans-004")
    document["utilisation"]["onehot"]["total"]["collapsed"] = collapsed
    places = {("s", "layer-01", "kmeans-004"): document, ("s", "layer-01", "pca"): reconstruction("layer-01", "pca")}
    assert any(words in text for text in sentences(documents(), reconstructions=places))
    assert any("With one active feature" in t for t in sentences(documents(), reconstructions=places)) is False
    places = {(s, "layer-03", basis): d for (s, _, basis), d in places.items()}
    assert any("NMSE is kmeans-004 0.250, pca 0.250" in t for t in sentences(documents(), reconstructions=places))


def test_bases_are_compared_at_every_budget_that_two_share_and_that_leaves_something_out():
    places = {}
    for basis, nmse in (("pca", 0.3), ("sae", 0.2)):
        document = reconstruction("layer-03", basis)
        entry = document["codings"]["topk-00001"]
        document["codings"] |= {"topk-00002": {**entry, "nmse": nmse, "nominal_l0": 2}}
        places["s", "layer-03", basis] = document
    del places["s", "layer-03", "sae"]["codings"]["topk-00001"]
    found = [text for text in sentences(documents(), reconstructions=places) if " per row at " in text]
    assert found == [
        "With 2 active features per row at layer-03, NMSE is sae 0.200, pca 0.300 (0 is exact, 1 is the mean)."
    ]


def test_fits_that_stopped_short_missing_results_and_one_seed_are_said():
    found = documents()
    found[path_of("layer-03", "pca", "dense")] = None
    texts = sentences(found)
    assert any("7 (feature, class) fits did not converge" in text for text in texts)
    assert any("14 (feature, class) fits rest on histograms alone, in 7 of 7" in text for text in texts)
    assert any(text.startswith("One seed was run") for text in texts)
    assert texts[-1] == f"Missing: {path_of('layer-03', 'pca', 'dense')}."


def test_nothing_at_all():
    assert find(Evidence()) == []
