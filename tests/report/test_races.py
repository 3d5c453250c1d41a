"""What a race allows to be said: intervals paired by seed, the best first whoever it is, edges kept out."""

import json

import numpy as np
import pytest

from eigenloom.errors import StoreError
from eigenloom.report.races import better, draw_races, interval, race_sentences, race_table, read_races


def write(folder, task, name, losses, seconds=1.0, interior=True, algorithm=None):
    path = folder / "results/optimizers/s/reduced" / task / f"{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    runs = [{"seed": i, "loss": loss, "curve": [loss + 1, loss + 0.5]} for i, loss in enumerate(losses)]
    spec = {"entry": {"algorithm": algorithm or name}, "window": 10}
    sweeps = {"lr": {"losses": [[1.0, 3.0], [2.0, 1.0], [4.0, 2.0]], "is_interior": interior}}
    document = {"format": "eigenloom.race", "version": 1, "runs": runs, "spec": spec, "sweeps": sweeps}
    path.write_text(json.dumps({**document, "rates": {"lr": 0.01, "adamw_lr": 0.02}}))
    path.with_suffix(".timing.json").write_text(
        json.dumps({"optimizer_seconds": [[seconds / 2, seconds]] * len(losses)})
    )
    return path


@pytest.fixture
def entries(tmp_path):
    seeds = np.array([0.0, 0.1, 0.2, 0.05, 0.15])
    return read_races(
        [
            write(tmp_path, "patches", "adamw", list(2.0 + seeds)),
            write(tmp_path, "patches", "muon", list(1.0 + seeds), 8.0),
            write(tmp_path, "patches", "spectra", list(1.5 + seeds + [0, 0.01, 0, 0.01, 0]), 2.0),
            write(
                tmp_path, "patches", "ours", list(1.5 + seeds + [0.01, 0, 0.01, 0, 0]), 2.0, algorithm="spectra_teon"
            ),
            write(tmp_path, "patches", "teon", list(0.5 + seeds), interior=False),
        ]
    )


def test_the_interval_is_students():
    mean, half = interval(np.array([1.0, 2.0, 3.0]))
    assert mean == 2.0
    assert half == pytest.approx(4.302653 * 1.0 / 3**0.5, rel=1e-6)
    assert interval(np.array([1.0])) == (1.0, float("inf"))


def test_differences_are_paired_by_seed(entries):
    by_name = {entry.name: entry for entry in entries}
    assert better(by_name["muon"], by_name["adamw"]) is True
    assert better(by_name["adamw"], by_name["muon"]) is False
    assert better(by_name["ours"], by_name["spectra"]) is None
    # Spreads of .1 hide a difference of .5 nowhere, for the seeds share their noise.
    assert by_name["muon"].interval[1] > 0.05


def test_the_text_names_the_winner_first_and_leaves_edges_out(entries):
    sentences = list(race_sentences(entries))
    assert "the lowest mean is muon's, 1.100 ± 0.098; higher for ours, spectra, adamw." in sentences[0]
    assert "at equal steps the loss of ours, spectra is lower than AdamW's." in " ".join(sentences)
    assert "a step of ours takes 2.0 times the CPU time of AdamW's." in " ".join(sentences)
    assert sentences[-1].endswith("teon had its best learning rate on the edge and is left out of claims.")


def test_the_text_turns_when_the_numbers_do(tmp_path):
    alike = [write(tmp_path, "text", name, [1.0, 1.1, 0.9][::sign], algorithm=rule)
             for name, rule, sign in (("adamw", "adamw", 1), ("spectra", "spectra", -1))]  # fmt: skip
    text = " ".join(race_sentences(read_races(alike)))
    assert "which 3 seeds do not tell apart from" in text
    assert "is not told apart from AdamW's" in text
    worse = [alike[0], write(tmp_path, "text", "spectra", [2.0, 2.1, 1.9])]
    assert "the loss of spectra is higher than AdamW's" in " ".join(race_sentences(read_races(worse)))
    one_seed = [write(tmp_path, "text", "adamw", [1.0]), write(tmp_path, "text", "spectra", [0.1])]
    assert "is lower than" not in " ".join(race_sentences(read_races(one_seed)))
    assert list(race_sentences([])) == []


def test_table_and_figure(entries):
    rows = race_table(entries)
    assert [row["optimizer"] for row in rows] == ["teon (edge)", "muon", "ours", "spectra", "adamw"]
    assert rows[1]["ms per step"] == "400.00"
    figure = draw_races(entries)
    assert figure == draw_races(entries)
    assert "learning rate swept" in figure
    assert "optimizer CPU seconds" in figure
    assert "mathdefault" not in figure  # numbers on logarithmic axes are plain
    assert "No optimizers were raced" in draw_races([])


def test_a_foreign_file_is_refused(tmp_path):
    path = tmp_path / "x.json"
    path.write_text("{}")
    with pytest.raises(StoreError, match="is not a race of optimizers"):
        read_races([path])
