"""What ``dvc.yaml`` versions: all that rules make below ``artifacts``, once, kept on every rerun."""

import configparser
import re
from pathlib import Path

import pytest
import yaml

from experiments import clashes, config_files, load
from plan import FAMILIES, Plan
from versions import HEAD, outs, stages, stages_text

ROOT = Path(__file__).resolve().parents[2]
CONFIGS = config_files(ROOT)


def names(path):
    return str(path.relative_to(ROOT))


def resolved(config):
    """The stages with which an experiment is, or would be, recorded."""
    text = stages_text(ROOT, config.relative_to(ROOT), load(config))
    return dict(stages(yaml.safe_load(text)))


@pytest.mark.parametrize("config", CONFIGS, ids=names)
def test_every_out_is_kept_on_a_rerun_and_every_parameter_is_one_of_the_configuration(config):
    document = yaml.safe_load(config.read_text())
    for name, stage in resolved(config).items():
        assert all(options == {"persist": True} for out in stage["outs"] for options in out.values()), name
        assert "frozen" not in stage
        ((file, keys),) = stage["params"][0].items()
        assert ROOT / file == config
        assert stage.get("wdir", ".") == ("." if config == CONFIGS[0] else "../../..")
        assert config == CONFIGS[0] or stage["cmd"].endswith(f" --configfile {names(config)}")
        assert stage["cmd"].split()[3] in FAMILIES
        for key in keys:
            node = document
            for part in key.split("."):
                node = node[part]


@pytest.mark.parametrize("config", CONFIGS, ids=names)
def test_stages_follow_the_configuration(config):
    plan = Plan(load(config))
    found = resolved(config)
    by_basis = {f"{source}-{basis}" for basis in plan.config["bases"] for source in plan.applied(basis)}
    probed = {f"{source}-{basis}" for basis in plan.config["bases"] for source in plan.applied(basis)
              if plan.sources[source].is_probed}  # fmt: skip
    kinds = ("stores", "moments", "bases", "probes", "weights", "banks")
    assert {name for name in found if name.startswith(kinds)} == {
        *(f"{stage}@{source}" for stage in ("stores", "moments") for source in plan.sources),
        *(f"bases@{item}" for item in by_basis),
        *(f"probes@{item}" for item in probed),
        *(f"weights@{collection}" for collection in plan.collections),
        *(f"banks@{moe}-{bank}" for moe, entry in plan.moes.items() for bank in entry["banks"]),
    }
    networks = [w["source"] for rule in ("train", "pin_model", "pin_text_model") for w in plan.jobs(rule)]
    assert {name for name in found if name.startswith("model")} == {f"model@{source}" for source in networks}


def test_the_root_is_as_the_configuration_says():
    text = stages_text(ROOT, Path("config.yaml"), load(CONFIGS[0]))
    assert (ROOT / "dvc.yaml").read_text() == text, "run `make record`"
    assert text.startswith(HEAD)


def test_no_directory_has_two_owners():
    owned = [path for config in CONFIGS for stage in resolved(config).values() for out in stage["outs"] for path in out]
    assert len(owned) == len(set(owned))
    assert not [(one, two) for one in owned for two in owned if one != two and two.startswith(f"{one}/")]


def test_an_experiment_that_was_never_recorded_has_no_stages():
    """DVC can neither pull nor check out while some stage has no entry in its ``dvc.lock``."""
    for path in (ROOT / "workflow/experiments").glob("*/dvc.yaml"):
        assert path.with_name("dvc.lock").exists()
        config = path.with_name("config.yaml")
        assert path.read_text() == stages_text(ROOT, config.relative_to(ROOT), load(config)), "run `make record`"


def test_an_experiment_leaves_out_what_another_owns(tmp_path):
    """It shares one source and one of its bases, and has another source and basis of its own."""
    experiment = tmp_path / "workflow/experiments/more/config.yaml"
    experiment.parent.mkdir(parents=True)
    for name in ("dvc.yaml", "config.yaml"):
        (tmp_path / name).write_text((ROOT / name).read_text())
    config = yaml.safe_load((ROOT / "config.yaml").read_text())
    config["name"], config["weights"], config["experts"] = "more", {}, {}
    config["sources"] = {"scenes": config["sources"]["scenes"], "own": config["sources"]["scenes"]}
    config["bases"] = {name: {"kind": "pca", "codings": ["dense"]} for name in ("pca", "new")}
    experiment.write_text(yaml.safe_dump(config))
    text = stages_text(tmp_path, experiment.relative_to(tmp_path), load(experiment))
    found = dict(stages(yaml.safe_load(text)))
    assert {name for name in found if name.startswith(("stores", "bases"))} == {
        "stores@own", "bases@scenes-new", "bases@own-new", "bases@own-pca",
    }  # fmt: skip
    experiment.with_name("dvc.yaml").write_text(text)
    assert not outs(tmp_path / "dvc.yaml").keys() & outs(experiment.with_name("dvc.yaml")).keys()
    assert stages_text(tmp_path, experiment.relative_to(tmp_path), load(experiment)) == text


@pytest.mark.dag
def test_all_that_rules_make_below_artifacts_is_versioned_and_asked_for(fresh):
    text = fresh.snakemake("-n", "all")
    asked = re.search(r"^rule all:\n    input: (.*)$", text, re.M)[1].split(", ")
    files = [path for path in asked if path.startswith("artifacts/")]
    owned = {path for stage in resolved(fresh_config()).values() for out in stage["outs"] for path in out}
    assert files
    assert not [path for path in files if not any(path.startswith(f"{out}/") for out in owned)]
    assert not [out for out in owned if not any(path.startswith(f"{out}/") for path in files)]


def fresh_config():
    """The configuration of the project of stubs."""
    return ROOT / "workflow/experiments/tiny/config.yaml"


def test_pulls_are_verified():
    config = configparser.ConfigParser()
    config.read(ROOT / ".dvc/config")
    remotes = [name for name in config.sections() if "remote" in name]
    assert remotes
    assert all(config[name]["verify"] == "true" for name in remotes)
    assert config["cache"]["type"].strip('"') == "reflink,copy"
    assert config["core"]["analytics"] == "false"
    assert config["core"]["remote"] in remotes[0]


def changed(**values):
    """The tiny configuration with other values at dotted keys (``__`` for the dot)."""
    config = yaml.safe_load((ROOT / "workflow/experiments/tiny/config.yaml").read_text())
    for path, value in {"name": "other", **values}.items():
        *parents, key = path.split("__")
        node = config
        for parent in parents:
            node = node[parent.replace("_", "-") if parent == "tiny_scenes" else parent]
        node[key] = value
    return config


def between(other, tmp_path):
    (tmp_path / "other.yaml").write_text(yaml.safe_dump(other, sort_keys=False))
    files = {"tiny": ROOT / "workflow/experiments/tiny/config.yaml", "other": tmp_path / "other.yaml"}
    return clashes({name: load(path) for name, path in files.items()})


def test_shipped_experiments_do_not_rebuild_each_other():
    assert clashes({names(path): load(path) for path in CONFIGS}) == []


def test_experiments_may_share_a_source_and_add_bases(tmp_path):
    other = changed(
        bases={"kmeans-008": {"kind": "kmeans", "n_clusters": 8, "codings": ["onehot"]}}, weights={"snapshots": 8}
    )
    assert between(other, tmp_path) == []


@pytest.mark.parametrize(
    ("values", "line"),
    [
        ({"name": "tiny"}, "name: tiny and other are both called `tiny` and would write one report; rename one"),
        ({"seed": 1}, "sources.tiny-scenes: tiny and other share it, but draw differs in seed (0 and 1); rename one"),
        ({"sources__tiny_scenes__layers": [0]}, "but record differs in layers ([1] and [0])"),
        ({"standardize": "center"}, 'but fit differs in standardize ("standard" and "center")'),
        ({"measure": {"shards_per_job": 4}}, "but measure differs in shards ([0, 1] and [0, 1, 2, 3])"),
        ({"bases": {"pca": {"kind": "pca", "whiten": True}}}, "but fit differs in basis.whiten (false and true)"),
        ({"probe": {"bins": 64}}, "but probe differs in probe.bins (256 and 64)"),
    ],
)
def test_equal_names_with_other_settings_are_refused(values, line, tmp_path):
    assert any(line in found for found in between(changed(**values), tmp_path))
