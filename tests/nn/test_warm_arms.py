"""Arms of the warm-start experiment: equal but for queries and keys, calibrated alike, trained alike."""

import numpy as np
import pytest
import torch

from eigenloom.bases.kernel_pca import KernelPCA
from eigenloom.errors import ConfigError, DataError
from eigenloom.nn import warm_arms
from eigenloom.nn.spectrum_vit import SpectrumShape
from eigenloom.nn.warm_arms import FULL_ARMS, Ingredients, build_arm, entropy_and_deviation, n_trainable
from eigenloom.nn.warm_training import Course, LabelledSpectra, judge_arm, nmse, train_arm
from eigenloom.sources.patches import PatchRows
from eigenloom.sources.simulated_spectra import SurveyStyle, write_survey
from eigenloom.sources.survey import open_survey

LABELS = ("T_eff", "M_H")
SHAPE = SpectrumShape(n_pixels=64, patch=16, stride=8, dim=16, depth=2, heads=4, n_labels=2)


@pytest.fixture(scope="module")
def survey(tmp_path_factory):
    path = tmp_path_factory.mktemp("stars") / "survey.h5"
    write_survey(path, SurveyStyle(n_pixels=64, n_lines=30), 0, 200)
    return open_survey(path)


@pytest.fixture(scope="module")
def spectra(survey):
    return LabelledSpectra.read(survey, np.arange(96), LABELS, "refuse", "median")


@pytest.fixture(scope="module")
def made_of(survey, spectra):
    rows = PatchRows(survey, np.arange(96), patch_size=16, patches_per_spectrum=4, seed=0)
    basis = KernelPCA.fit(rows, seed=0, n_components=16, n_landmarks=64)
    return Ingredients(SHAPE, basis, torch.cat([batch.clone() for batch in rows]), spectra.flux[:32], 0.1, 0)


def test_arms_differ_in_queries_and_keys_alone(made_of):
    models = {arm: build_arm(arm, made_of) for arm in FULL_ARMS}
    assert len({n_trainable(model) for model in models.values()}) == 1
    states = {arm: dict(model.named_parameters()) for arm, model in models.items()}
    for name, wanted in states["cold"].items():
        for state in states.values():
            assert state[name].shape == wanted.shape
            assert "adapter" in name or torch.equal(state[name], wanted), name
    selections = [
        states[arm]["first.attention.q_adapter.weight"] for arm in ("linear-pca", "random-features", "kpca-warm")
    ]
    assert all(torch.equal(selections[0], other) for other in selections[1:])


@pytest.mark.parametrize("arm", FULL_ARMS)
def test_arms_begin_where_they_should(made_of, arm):
    model = build_arm(arm, made_of)
    entropy, deviation = entropy_and_deviation(model, made_of.batch)
    if arm == "cold":
        assert 0.05 < deviation < 1
    else:
        assert deviation == pytest.approx(1.0 if arm == "kpca-sharp" else 0.1, rel=0.01)
    if arm not in ("cold", "kpca-sharp"):
        assert 0.99 < entropy < 1
    assert (arm == "kpca-sharp") == (entropy < 0.95)


def test_seeds_draw_other_networks(made_of):
    one, again = build_arm("small", made_of), build_arm("small", made_of)
    other = build_arm("small", Ingredients(SHAPE, made_of.basis, made_of.patches, made_of.batch, 0.1, 1))
    for a, b, c in zip(one.parameters(), again.parameters(), other.parameters(), strict=True):
        assert torch.equal(a, b)
        assert a.numel() < 100 or a.shape[0] == 7 or not torch.equal(a, c)


@pytest.mark.parametrize("arm", ["cold", "small", "kpca-warm"])
def test_only_the_cold_arm_trains_queries_at_once(made_of, spectra, arm):
    model = build_arm(arm, made_of)
    before = model.first.attention.q_adapter.weight.detach().clone()
    history = train_arm(arm, model, spectra, spectra, Course(1, 1), 0)
    assert torch.equal(before, model.first.attention.q_adapter.weight) == (arm != "cold")
    assert len(history) == 1
    assert len(history[0]) == len(LABELS)


def test_training_learns_something_and_repeats_itself(made_of, spectra):
    results = []
    for _ in range(2):
        model = build_arm("kpca-warm", made_of)
        results.append(
            (
                train_arm("kpca-warm", model, spectra, spectra, Course(30, 5), 0),
                judge_arm(model, spectra, spectra, [1, 4], 0),
            )
        )
    assert results[0] == results[1]
    history, judged = results[0]
    assert sum(history[-1]) < 0.7 * sum(history[0])
    assert judged["1"]["nmse"] == pytest.approx(sum(history[-1]) / 2)
    assert judged["4"]["nmse"] > judged["1"]["nmse"]


def test_added_noise_makes_the_noise_so_many_times_as_large(spectra):
    clean = spectra.noisier(1, 0)
    assert clean is spectra.flux
    added = (spectra.noisier(4, 0) - spectra.flux) / spectra.error
    assert float(added.std()) == pytest.approx(15**0.5, rel=0.03)
    assert torch.equal(spectra.noisier(4, 0), spectra.noisier(4, 0))
    with pytest.raises(DataError, match="needs an error array"):
        LabelledSpectra(spectra.flux, None, spectra.labels).noisier(2, 0)


def test_nmse_by_hand():
    labels = torch.tensor([[0.0, 1.0], [2.0, 3.0]])
    assert nmse(labels.mean(0).expand(2, 2), labels) == [1.0, 1.0]
    assert nmse(labels + torch.tensor([1.0, 0.0]), labels) == [1.0, 0.0]


def test_a_label_that_is_missing(survey):
    with pytest.raises(DataError, match="age"):
        LabelledSpectra.read(survey, np.arange(10), ["age"], "refuse", "median")


def test_components_and_width_must_agree(made_of, survey):
    rows = PatchRows(survey, np.arange(96), patch_size=16, patches_per_spectrum=4, seed=0)
    few = KernelPCA.fit(rows, seed=0, n_components=8, n_landmarks=64)
    with pytest.raises(ConfigError, match="8 components and the network a width of 16"):
        build_arm("kpca-warm", Ingredients(SHAPE, few, made_of.patches, made_of.batch, 0.1, 0))
    with pytest.raises(ConfigError, match="'hot' is unknown"):
        build_arm("hot", made_of)


def test_the_plan_and_the_library_know_the_same_arms():
    import warm_study

    assert warm_study.ARMS == warm_arms.ARMS
    assert warm_study.FULL_ARMS == warm_arms.FULL_ARMS


@pytest.mark.parametrize("changes", [{"patch": 65}, {"heads": 3}, {"depth": 0}])
def test_shapes_that_do_not_fit(changes):
    with pytest.raises(ConfigError, match="do not fit together"):
        SpectrumShape(**{**vars(SHAPE), **changes})
