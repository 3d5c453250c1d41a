"""What DVC versions of an experiment: the ``dvc.yaml`` beside its configuration, written from ``versions.yaml``.

It is written when the experiment is recorded and not earlier, for DVC can neither pull nor check out while some stage
has never been recorded. It lists exactly what the configuration makes, so that an edit changes no stage but its own.
"""

import re
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

import yaml

from plan import Plan

ENTRIES = Path(__file__).with_name("versions.yaml")
KEPT = (".snakemake/metadata", "results")
"""What Git keeps of a run, beside configuration, ``dvc.yaml`` and ``dvc.lock``."""
DIRECTORIES = {
    **dict.fromkeys(("draw", "list_images"), "artifacts/{source}/images"),
    **dict.fromkeys(("simulate", "list_spectra"), "artifacts/{source}/spectra"),
    "list_texts": "artifacts/{source}/texts",
    "denoise": "artifacts/{source}/denoised",
    "fit_patches": "artifacts/{source}/attention",
    **dict.fromkeys(("train", "pin_model", "pin_text_model"), "artifacts/{source}/model"),
    "train_run": "artifacts/{source}/runs/{run}",
    "decompose": "artifacts/weights/{collection}",
    "train_moe": "artifacts/{moe}/trainings/{training}",
    "fit_bank": "artifacts/{moe}/{bank}",
    **dict.fromkeys(
        ("record", "label", "record_spectra", "label_spectra", "record_texts", "label_texts", "join_store", "adopt"),
        "artifacts/{source}/saev",
    ),
    **dict.fromkeys(("measure", "join_moments"), "artifacts/{source}/moments"),
    "fit": "artifacts/{source}/bases/{basis}",
    **dict.fromkeys(("encode_label", "encode_topk", "encode_dense", "join_codes"), "artifacts/{source}/codes/{basis}"),
    "probe": "artifacts/{source}/probes/{basis}",
}
"""Rule -> the versioned directory that its files are in, for the rules that write below ``artifacts``."""
HEAD = "# Written by `make record` from workflow/versions.yaml: what DVC versions of the configuration beside it.\n"


def made(plan: Plan) -> dict[str, dict[str, str]]:
    """Return every versioned directory that a plan fills -> the wildcards in its path."""
    found = {}
    for rule, template in DIRECTORIES.items():
        names = re.findall(r"\{(\w+)\}", template)
        for job in plan.jobs(rule):
            found[template.format(**job)] = {name: job[name] for name in names}
    return found


def outs(stages_file: Path) -> dict[str, str]:
    """Return every directory that a ``dvc.yaml`` names -> the stage that records it."""
    return {path: stage for stage, entry in stages(_read(stages_file)) for out in entry["outs"] for path in out}


def stages(document: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield name and content of every stage of a ``dvc.yaml``."""
    for name, entry in document["stages"].items():
        for suffix, item in entry["foreach"].items():
            yield f"{name}@{suffix}", _filled(entry["do"], item)


def stages_text(root: Path, config_file: Path, config: dict[str, Any]) -> str:
    """Write the ``dvc.yaml`` of an experiment, without what another ``dvc.yaml`` owns already.

    Args:
        root: the checkout.
        config_file: the configuration, relative to it.
        config: its valid content, defaults filled in.
    """
    own = config_file.with_name("dvc.yaml")
    files = [root / "dvc.yaml", *root.glob("workflow/experiments/*/dvc.yaml")]
    owned = {path for file in files if file.is_file() and file != root / own for path in outs(file)}
    plan, stated = Plan(config), _read(root / config_file)
    up = "/".join([".."] * len(own.parent.parts))
    head = {"wdir": up} if up else {}
    told = "" if not up else f" --configfile {config_file}"
    made_here = made(plan)
    document: dict[str, Any] = {"stages": {}}
    for name, entry in _read(ENTRIES).items():
        items = dict(_items(entry, made_here, owned))
        document["stages"][name] = {
            "foreach": items,
            "do": {
                "desc": entry["desc"],
                **head,
                "cmd": f"snakemake --cores all {entry['target']}{told}",
                "params": [{str(config_file): [key for key in entry["params"] if "$" in key or _has(stated, key)]}],
                "outs": [{path: {"persist": True}} for path in entry["outs"]],
            },
        }
    document["stages"] = {name: stage for name, stage in document["stages"].items() if stage["foreach"]}
    tables = f"{up}/results/tables/{config['name']}".lstrip("/")
    scatter = {"x": "l0", "y": "nmse", "template": "scatter", "title": "variance unexplained at each L0"}
    document |= {"metrics": [f"{tables}/summary.json"], "plots": [{f"{tables}/table.csv": scatter}]}
    return HEAD + yaml.safe_dump(document, sort_keys=False, width=120)


def _items(
    entry: dict[str, Any], made_here: dict[str, dict[str, str]], owned: Collection[str]
) -> Iterator[tuple[str, dict[str, str]]]:
    """Yield end of the name and values of each combination of which all directories are made and none is owned."""
    for values in made_here.values():
        if list(values) == entry["of"]:
            directories = _filled(entry["outs"], values)
            if all(path in made_here and path not in owned for path in directories):
                yield "-".join(values.values()), dict(values)


def _has(config: dict[str, Any], path: str) -> bool:
    """Say whether a configuration states the value at a dotted path, rather than leaving it to its default."""
    node: Any = config
    for part in path.split("."):
        if not isinstance(node, dict) or part not in node:
            return False
        node = node[part]
    return True


def _read(path: Path) -> dict[str, Any]:
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def _filled(value: Any, item: dict[str, str]) -> Any:
    """Put an item into the ``${item.KEY}`` of texts, keys included."""
    if isinstance(value, dict):
        return {_filled(key, item): _filled(child, item) for key, child in value.items()}
    if isinstance(value, list):
        return [_filled(child, item) for child in value]
    if isinstance(value, str):
        return re.sub(r"\$\{item\.(\w+)\}", lambda match: item[match[1]], value)
    return value
