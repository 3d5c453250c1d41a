"""What the report says of denoised surveys and of arms of attention follows from their numbers."""

import json

import pytest

from eigenloom.errors import StoreError
from eigenloom.evaluation.arms import FORMAT, NOTHING, TABLE_FORMAT, VERSION, compare
from eigenloom.provenance import text_digest
from eigenloom.report.attention import NOTHING as NO_ARMS
from eigenloom.report.attention import attention_curves, attention_facts, attention_findings
from eigenloom.report.denoising import NOTHING as NO_SURVEY
from eigenloom.report.denoising import denoised_spectra, denoising_facts, denoising_findings, denoising_scores
from eigenloom.report.evidence import Evidence, gather
from eigenloom.report.page import draw, render
from eigenloom.store.atomic import write_json, write_text

ARMS = ("cold", "small", "linear-pca", "random-features", "kpca-warm")


def scores(gain, precision=0.99, recall=0.97):
    return {
        "found": 10, "precision": precision, "recall_strong": recall, "recall": [0.0, 0.1, 0.9, 1.0, None, 1.0],
        "planted": [3, 3, 3, 3, 0, 3], "snr_gain_db": gain, "snr_gain_unhit_db": gain - 4,
    }  # fmt: skip


def denoised(gain=19.0, rival=10.0, truth=True, **changes):
    spectrum = {"row": 7, "flux": [1.0, 3.0, 1.1, None], "error": [0.1] * 4, "low": [1.0, 1.0, 1.1, 1.0],
                "found": [0.0, 1.0, 0.0, 0.0]} | ({"clean": [1.0, 1.0, 1.0, 1.0]} if truth else {})  # fmt: skip
    facts = {"rank": 31, "status": "converged", "gap": 5e-4, "threshold": 5.0}
    document = {
        "format": "eigenloom.denoising", "version": 1, "source": "stars", "pursuit": facts, "n_spectra": 20,
        "n_hits": 9, "pile_up": [{"wavelength": 5500.0, "share": 0.01}], "n_compared": 20,
        "examples": {"wavelength": [5000.0, 5001.0, 5002.0, 5003.0], "unit": "Angstrom", "spectra": [spectrum]},
    }  # fmt: skip
    if not truth:
        injected = {"recall_strong": 0.93, "recall": [0.0] * 6, "planted": [1] * 6, "status": "converged"}
        return {**document, "injected": injected}
    methods = [
        {"method": "pcp", "detail": "rank 31", **scores(gain)},
        {"method": "pca", "detail": "rank 5", **scores(rival)},
    ]
    return {**document, "whole": {**scores(gain), **changes}, "input_snr_db": 21.0, "methods": methods}


def arms(n_seeds=6, warm=0.0):
    return compare([
        {
            "format": FORMAT, "version": VERSION, "arm": arm, "seed": s, "n_train": n, "labels": ["T_eff"],
            "entropy": 0.99, "parameters": 123456, "logit_std": 0.1, "val_nmse": [0.9, 0.5], "epochs_to_cold": 2,
            "test": {k: {"nmse": 0.5 + 0.01 * s - warm * (arm == "kpca-warm") + 0.001 * (s * i % 3), "by_label": [0.5]}
                     for k in ("1", "4")},
        }
        for n in (300, 1000) for i, arm in enumerate(ARMS) for s in range(n_seeds)
    ])  # fmt: skip


def told(**changes):
    (finding,) = denoising_findings(Evidence(denoised={"stars": denoised(**changes)}))
    return finding


def test_denoising_that_gains_most_is_a_finding():
    finding = told()
    assert finding.tone == "good"
    assert "finds 0.970 of the hits above 5 sigma at a precision of 0.990 and gains 19.0 dB" in finding.text
    assert "rank 31, converged with a relative duality gap of 5.0e-04" in finding.text
    assert "pca (rank 5), gains 10.0 dB on the same 20 spectra, pcp 19.0." in finding.text
    assert "Missed" not in finding.text
    assert finding.paths == ("results/stars/denoised/metrics.json",)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"precision": 0.9}, "Missed: precision 0.900 below its target 0.98."),
        ({"recall_strong": 0.9}, "Missed: recall_strong 0.900 below its target 0.95."),
        ({"snr_gain_db": 14.0}, "Missed: snr_gain_db 14.000 below its target 15."),
        ({"rival": 20.0}, "gains 20.0 dB"),
    ],
)
def test_a_target_that_is_missed_is_said(changes, words):
    finding = told(**changes)
    assert finding.tone == "warning"
    assert words in finding.text


def test_without_truth_only_injected_hits_are_spoken_of():
    finding = told(truth=False)
    assert "0.930 of the injected hits" in finding.text
    assert "no truth to judge by" in finding.text
    evidence = Evidence(denoised={"stars": denoised(truth=False)})
    assert "injected hits" in denoising_scores(evidence)
    assert "truth" not in denoised_spectra(evidence)


def test_spectra_are_drawn_with_units_and_residuals():
    figure = denoised_spectra(Evidence(denoised={"stars": denoised()}))
    for label in (
        "wavelength (Angstrom)",
        "residual / sigma",
        "low-rank part",
        "as measured",
        "truth",
        "5 sigma",
        "flux",
    ):
        assert label in figure
    assert "stars, spectrum 7" in figure


def test_every_method_is_in_the_table():
    (table,) = denoising_facts(Evidence(denoised={"stars": denoised()}))
    assert [row[0] for row in table["rows"]] == ["pcp", "pca", "wavelengths with most hits"]
    assert table["rows"][0][2:] == ["0.990", "0.970", "19.0", "15.0"]


@pytest.mark.parametrize(
    ("n_seeds", "warm", "tone", "words", "n"),
    [
        (6, 0.1, "good", "kernel PCA helps", 4),
        (6, 0.0, "plain", f"at 300 and 1000 training spectra and noise 1 and 4 times theirs, {NOTHING}", 1),
        (3, 0.1, "plain", "nothing is claimed from 3 seeds, fewer than 5; mean differences in NMSE are -0.1000 to", 1),
    ],
)
def test_sentences_on_attention_are_those_of_the_rule(n_seeds, warm, tone, words, n):
    found = list(attention_findings(Evidence(arms={"stars": arms(n_seeds, warm)})))
    assert len(found) == n
    for finding in found:
        assert finding.tone == tone
        assert words in finding.text
        assert finding.paths == ("results/stars/attention/table.json",)


def test_no_arm_is_left_out_of_figure_and_table():
    evidence = Evidence(arms={"stars": arms()})
    figure, (table,) = attention_curves(evidence), attention_facts(evidence)
    for arm in ARMS:
        assert figure.count(f">{arm}<") == 1
        assert arm in table["columns"]
    assert len(table["rows"]) == 5
    assert "123,456 parameters" in table["title"]


def test_without_either_there_is_a_sentence():
    for figure, words in ((denoised_spectra, NO_SURVEY), (denoising_scores, NO_SURVEY), (attention_curves, NO_ARMS)):
        assert words in figure(Evidence())


def test_a_page_of_files(tmp_path):
    document = denoised()
    examples = json.dumps(document.pop("examples"))
    write_text(tmp_path / "results/stars/denoised/examples.json", examples)
    path = tmp_path / "results/stars/denoised/metrics.json"
    write_json(path, {**document, "files": {"examples.json": {"sha256": text_digest(examples)}}})
    table = tmp_path / "results/stars/attention/table.json"
    write_json(table, {"format": TABLE_FORMAT, "version": VERSION, **arms()})
    evidence = gather(denoised=[path], arms=[table])
    assert evidence.denoised["stars"]["examples"]["unit"] == "Angstrom"
    page = render("made-up", evidence, draw(evidence), tmp_path, [])
    for words in ("Spectra before and after denoising", "Denoising: stars", "Warm attention: stars", NOTHING):
        assert words in page
    write_text(path.with_name("examples.json"), "{}")
    with pytest.raises(StoreError, match="is not the file"):
        gather(denoised=[path])
    for wrong in (path, table):
        write_json(wrong, {"format": "other"})
    with pytest.raises(StoreError, match="holds no scores of a denoised survey"):
        gather(denoised=[path])
    with pytest.raises(StoreError, match="is no table of arms"):
        gather(arms=[table])
