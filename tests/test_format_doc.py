"""``docs/format.md`` says what the code does: its tables are parsed and compared with what is written."""

import json
import re
from pathlib import Path

import h5py
import made_up_results
import pytest
import torch
from checkpoint_files import collection
from recordings import record
from safetensors import safe_open

from eigenloom.bases.weights import ERROR_KEYS, ERRORS_FORMAT, ERRORS_VERSION
from eigenloom.evaluation import arms
from eigenloom.experts.bank import ExpertBank, save_bank
from eigenloom.nn import moe_judging, weights
from eigenloom.report import expert_table
from eigenloom.sources import checkpoint_layout, denoising, simulated_spectra, spectra_edge
from eigenloom.sources.checkpoints import Checkpoints
from eigenloom.sources.simulated_spectra import BLOCK_ROWS, UNITS
from eigenloom.sources.survey_keys import SurveyKeys
from eigenloom.store import artifact, joining, protocol, recording, sidecar
from eigenloom.store.atomic import read_json

TEXT = (Path(__file__).parents[1] / "docs" / "format.md").read_text(encoding="utf-8")
SECTIONS = {
    part.partition("\n")[0].strip(): part.partition("\n")[2] for part in re.split(r"(?m)^#{1,3} ", TEXT) if part
}


def table(section):
    """The rows of the first table of a section, as lists of cells, without its head."""
    lines = re.search(r"(?m)(^\|.*\n)+", SECTIONS[section]).group().splitlines()
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    assert set("".join(rows[1])) == {"-"}
    return rows[2:]


def keys(section):
    names = [row[0] for row in table(section)]
    assert all(re.fullmatch("`[a-z_0-9]+`", name) for name in names)
    return tuple(name.strip("`") for name in names)


def listed(section, label):
    """The names in backticks of the sentence ``label: ...``."""
    sentence = re.search(rf"(?m)^{label}: ([^.]*)\.", SECTIONS[section]).group(1)
    return re.findall("`([^`]+)`", sentence)


def test_constants():
    found = {row[0]: row[1] for row in table("File formats")}
    assert found == {
        "shard protocol": f"`{protocol.PROTOCOL}`",
        "activation store": f"`{sidecar.FORMAT}` version {sidecar.VERSION}",
        "shard edge": f"`{joining.SHARD_FORMAT}` version {joining.VERSION}",
        "labels edge": f"`{joining.LABELS_FORMAT}` version {joining.VERSION}",
        "spectra edge": f"`{spectra_edge.FORMAT}` version {spectra_edge.VERSION}",
        "artifact": f"`{artifact.FORMAT}` version {artifact.VERSION}",
        "default `max_tokens_per_shard`": str(protocol.MAX_TOKENS_PER_SHARD),
        "most shards of a recording": str(protocol.MAX_SHARDS),
        "largest count": str(protocol.MAX_COUNT),
        "largest `metadata.json` that is read, in bytes": str(recording.MAX_METADATA_BYTES),
        "largest `shards.json` or `store.json` that is read, in bytes": str(recording.MAX_LIST_BYTES),
    }


def test_store_files_have_the_documented_keys(tmp_path):
    labels = torch.zeros(11, 4, dtype=torch.uint8).numpy()
    record(tmp_path, labels=labels)
    store = read_json(tmp_path / "store.json")
    shards = read_json(tmp_path / "shards.json")
    assert keys("`metadata.json`") == protocol.KEYS == tuple(read_json(tmp_path / "metadata.json"))
    assert keys("Sidecar `store.json`") == sidecar.KEYS == tuple(store)
    assert {keys("`shards.json`")} == {tuple(entry) for entry in shards}
    assert set(keys("Entries of `shards`")) == set(sidecar.SHARD_KEYS) == set(store["shards"][0])
    assert set(keys("`labels`")) == set(sidecar.LABEL_KEYS) == set(store["labels"])
    named = {"metadata.json", "shards.json", "store.json", "labels.bin", *(entry["name"] for entry in shards)}
    assert {path.name for path in tmp_path.iterdir()} == named
    assert [shards[0]["name"], shards[1]["name"]] == re.findall(r"`(acts\d+\.bin)`", SECTIONS["Activation store"])


def test_edges_have_the_documented_keys():
    assert keys("Shard edge `shard-NNNNN.json`") == joining.SHARD_KEYS
    assert keys("Labels edge `labels.json`") == joining.LABELS_KEYS
    sentence = re.search(r"differ in\s+(.*?)\.\n", SECTIONS["Shard edge `shard-NNNNN.json`"], re.DOTALL).group(1)
    assert tuple(re.findall("`([a-z_]+)`", sentence)) == joining.COMMON


def test_surveys_have_the_documented_keys():
    assert [row[1].strip("`") for row in table("Survey of spectra")] == list(vars(SurveyKeys()).values())
    assert keys("Spectra edge") == spectra_edge.KEYS
    labels = re.search(r"its labels are (.*?)\.", SECTIONS["Survey of spectra"], re.S)[1]
    assert re.findall("`([^`]+)`", labels) == list(UNITS)
    assert f"blocks of {BLOCK_ROWS};" in SECTIONS["Survey of spectra"]


def test_denoised_surveys_have_the_documented_parts(tmp_path):
    simulated_spectra.write_survey(tmp_path / "s.h5", simulated_spectra.SurveyStyle(n_pixels=16), 0, 40)
    denoising.denoise_survey(tmp_path / "s.h5", tmp_path / "s.pcp.h5")
    with h5py.File(tmp_path / "s.pcp.h5") as file:
        found = {f"pcp/{name}": item for name, item in file["pcp"].items() if name != "sparse"}
        found |= {f"pcp/sparse/{name}": item for name, item in file["pcp/sparse"].items()}
        documented = {row[0].strip("`"): row[1] for row in table("Denoised survey")}
        assert documented.keys() == found.keys()
        for name, item in found.items():
            assert documented[name].startswith(f"`{item.dtype.str.removeprefix('|')}")
        attributes = re.findall(r"(?m)^\| `([a-z_0-9]+)` \|", SECTIONS["Denoised survey"])
        assert set(attributes) == set(file.attrs)


def test_arms_have_the_documented_keys():
    rows = {row[0]: row[1] for row in table("Arms of attention")}
    assert (rows["`format`"], rows["`version`"]) == (f"`{arms.FORMAT}`", str(arms.VERSION))
    assert f"(`{arms.TABLE_FORMAT}` version {arms.VERSION})" in SECTIONS["Arms of attention"]


def test_artifacts_have_the_documented_keys(tmp_path):
    artifact.write_artifact(tmp_path, kind="thing", parameters={}, arrays={"x": torch.zeros(2)})
    meta = read_json(tmp_path / "meta.json")
    rows = {row[0].strip("`"): row[1] for row in table("Artifact")}
    assert tuple(rows) == tuple(meta)
    assert re.findall('"([a-z0-9]+)"', rows["arrays"]) == list(meta["arrays"]["x"])
    assert re.findall('"([a-z0-9]+)"', rows["files"]) == list(meta["files"]["arrays.safetensors"])
    assert listed("Artifact", "Dtypes") == list(artifact.DTYPES.values())
    assert {path.name for path in tmp_path.iterdir()} == {"meta.json", "arrays.safetensors", "run.json"}


def test_a_single_file_keeps_its_meta_under_the_documented_key(tmp_path):
    artifact.write_single(tmp_path / "x.safetensors", kind="thing", parameters={}, arrays={"x": torch.zeros(2)})
    (key,) = re.findall("header's key `([a-z]+)`", SECTIONS["Artifact"])
    with safe_open(tmp_path / "x.safetensors", framework="pt") as file:
        header = file.metadata()
    assert list(header) == [key] == [artifact.HEADER_KEY]
    assert json.loads(header[key])["files"] == {}


def test_choices():
    assert tuple(listed("`metadata.json`", "Families")) == protocol.FAMILIES
    values = {row[0].strip("`"): re.findall("`([^`]+)`", row[1]) for row in table("`metadata.json`")}
    for key in ("pixel_agg", "dtype", "protocol"):
        assert tuple(values[key]) == protocol.CHOICES[key]


@pytest.mark.parametrize(
    ("section", "constant"),
    [
        ("Sidecar `store.json`", sidecar),
        ("Artifact", artifact),
        ("Spectra edge", spectra_edge),
        ("Shard edge `shard-NNNNN.json`", joining.SHARD_FORMAT),
        ("Labels edge `labels.json`", joining.LABELS_FORMAT),
    ],
)
def test_formats_and_versions(section, constant):
    name, version = (constant, joining.VERSION) if isinstance(constant, str) else (constant.FORMAT, constant.VERSION)
    rows = {row[0]: row[1] for row in table(section)}
    assert (rows["`format`"], rows["`version`"]) == (f"`{name}`", str(version))


def test_code_shards_have_a_section():
    assert "Code shards" in SECTIONS


def test_results_of_experts_have_the_documented_keys():
    bank = made_up_results.experts()[0]
    made = moe_judging.results("m", "b", bank["rows"], seeding=bank["seeding"], spec={}, inputs={})
    section = "`results/{moe}/{bank}/metrics.json`"
    assert keys(section) == tuple(made)
    rows = {row[0]: row[1] for row in table(section)}
    assert (rows["`format`"], rows["`version`"]) == (f"`{moe_judging.FORMAT}`", str(moe_judging.VERSION))
    assert (expert_table.RESULTS_FORMAT, expert_table.RESULTS_VERSION) == (moe_judging.FORMAT, moe_judging.VERSION)
    assert f"`{{{', '.join(moe_judging.ROW_KEYS)}}}`" in rows["`rows`"]
    section = "`results/tables/{name}/experts.json`"
    assert keys(section) == (*expert_table.tabulate([bank]), "name", "spec", "inputs")
    rows = {row[0]: row[1] for row in table(section)}
    assert (rows["`format`"], rows["`version`"]) == (f"`{expert_table.FORMAT}`", str(expert_table.VERSION))


def test_weights_have_the_documented_keys(tmp_path):
    paths, _ = collection(tmp_path)
    assert keys("`layout.json`") == tuple(Checkpoints(paths).layout.document())
    assert tuple(row[0].strip("`") for row in table("`errors.json`")) == ERROR_KEYS
    rows = {row[0]: row[1] for row in table("`layout.json`")}
    assert (rows["`format`"], rows["`version`"]) == (f"`{checkpoint_layout.FORMAT}`", str(checkpoint_layout.VERSION))
    rows = {row[0]: row[1] for row in table("`results/weights/{collection}/metrics.json`")}
    assert (rows["`format`"], rows["`version`"]) == (f"`{weights.FORMAT}`", str(weights.VERSION))
    assert f"`{ERRORS_FORMAT}`), `version` ({ERRORS_VERSION})" in SECTIONS["`errors.json`"]
    assert keys("`results/weights/{collection}/metrics.json`") == tuple(made_up_results.weights())


def test_expert_bank(tmp_path):
    found = {}
    for codes in (torch.ones(4, 3), torch.tensor([[1.0, 0, 0]] * 4)):
        bank = ExpertBank(
            torch.ones(3, 2, 7),
            codes,
            torch.ones(4, 5, 2),
            "tanh",
            False,
            "gate",
            tuple("abcd"),
            {"relative_error": 0.5},
        )
        save_bank(bank, tmp_path)
        meta = read_json(tmp_path / "meta.json")
        found |= meta["arrays"]
        assert list(meta["parameters"]) == listed("Expert bank", "Parameters")
    documented = {row[0].strip("`"): row[1].split("`")[1] for row in table("Expert bank")}
    assert documented == {name: facts["dtype"] for name, facts in found.items()}
    assert meta["kind"] == "expert_bank"
