# The checked configuration, and what rules ask of it: specifications, wildcards, targets, resources, environments.
#
# Jobs have one thread each, so that what they compute does not round differently under another `--cores` and small
# jobs share a small machine. Large fits get more from the command line or a profile: `--set-threads fit=8 probe=8`.
import sys
from pathlib import Path

from snakemake.exceptions import WorkflowError
from snakemake.logging import logger

sys.path[:0] = [f"{workflow.basedir}/src", f"{workflow.basedir}/workflow"]

from configuration import check
from plan import FAMILIES, Plan
from source import SPLITS
from specs import Specs

CONFIG_FILE = ", ".join(os.path.relpath(path) for path in workflow.overwrite_configfiles) or "config.yaml"
MAX_PATH = 100

if mistakes := check(config):
    raise WorkflowError(*(f"{CONFIG_FILE}: {line}" for line in mistakes))

plan = Plan(config)
specs = Specs(plan)
CPU, DEVICE = "../../envs/cpu.yaml", f"../../envs/{plan.environment}.yaml"
# Threads that wait must sleep: spinning on a core that something else needs makes two threads slower than one.
shell.prefix("export PYTHONPATH=src${{PYTHONPATH:+:$PYTHONPATH}} OMP_WAIT_POLICY=${{OMP_WAIT_POLICY:-passive}}; ")

if workflow.is_main_process:
    for line in plan.remarks():
        logger.info(f"{CONFIG_FILE}: {line}")


def spec_for(rule):
    """The one parameter of a rule: canonical JSON of all that changes its result."""
    return lambda wildcards: specs.text(rule, dict(wildcards.items()))


def command(script, edge, *names, threads="{threads}", before=""):
    """Every script is called alike: its specification, the edge it writes, the edges it reads."""
    edges = " ".join(f"--{name.replace('_', '-')} {{input.{name}}}" for name in names)
    return (
        f"{before}exec python scripts/start.py scripts/{script}.py --spec {{params.spec:q}} --out {{output.{edge}}} {edges}"
        f" --device {{resources.device}} --threads {threads} > {{log}} 2>&1"
    )


def artifact(directory):
    """The three files of an artifact."""
    return {
        "meta": f"{directory}/meta.json",
        "arrays": f"{directory}/arrays.safetensors",
        "run": f"{directory}/run.json",
    }


def network(directory):
    """The files of a trained network, and the checkpoints that its training left."""
    return {
        "meta": f"{directory}/meta.json",
        "config": f"{directory}/config.json",
        "weights": f"{directory}/model.safetensors",
        "history": f"{directory}/history.csv",
        "snapshots": [f"{directory}/{name}" for name in plan.snapshots],
        "run": f"{directory}/run.json",
    }


def figure(path, category="Figures"):
    """A file below `results` with its caption for `snakemake --report`."""
    return report(f"results/{path}", caption=f"../report/{Path(path).stem}.rst", category=category)


def needs(rule, mem_mb, runtime, device="cpu"):
    """Memory and minutes, growing with each attempt, and one GPU where the device may be one and the work profits."""
    return {
        "mem_mb": lambda wildcards, attempt: mem_mb * attempt,
        "runtime": lambda wildcards, attempt: runtime * attempt,
        "gpu": lambda wildcards: plan.gpus(rule, device, dict(wildcards.items())),
        "device": device,
    }


def outputs(rule, *names, **wildcards):
    """The outputs, or those of some names, of every job of a rule, or of those with some wildcards."""
    files = getattr(rules, rule).output
    templates = [str(getattr(files, name)) for name in names] or list(map(str, files))
    return [template.format(**job) for job in plan.jobs(rule, **wildcards) for template in templates]


def targets(*families):
    """Every file of some families."""
    return lambda wildcards: [path for family in families for rule in FAMILIES[family] for path in outputs(rule)]


def beside(family):
    """What a target makes beside the files of its family: that of spectra also what bases reconstruct of them."""
    sources = [name for name, source in plan.sources.items() if source.config["kind"] == family]
    return [path for name in sources for path in outputs("evaluate", source=name)]


def configured_bases(source):
    """The edges of a source's bases, floors left out."""
    return [path for basis in config["bases"] for path in outputs("fit", "meta", source=source, basis=basis)]


def parts(wildcards):
    """The edges that a manifest of codes joins."""
    return outputs(f"encode_{wildcards.layout}", "part", **{k: v for k, v in wildcards.items() if k != "layout"})


def manifest(wildcards, split):
    """The manifest of the written codes that a coding is read from; nothing where the probe streams."""
    layout = plan.viewed(wildcards.source, wildcards.basis, wildcards.coding)
    place = {k: v for k, v in wildcards.items() if k != "coding"}
    return outputs("join_codes", "manifest", **place, split=split, layout=layout) if layout else []


def raced_images(wildcards, split):
    """The images that a race needs, if its task is to label their patches."""
    return f"artifacts/{wildcards.source}/images/{split}/meta.json" if wildcards.task == "patches" else []


def trainings(wildcards):
    """The edges of the trainings whose checkpoints a collection consists of."""
    return [path for rule, job in plan.trainings(wildcards.collection) for path in outputs(rule, "meta", **job)]


def judging_images(wildcards):
    """The images that networks rebuilt from a collection are judged on."""
    return f"artifacts/{plan.collections[wildcards.collection]['source']}/images/fit_val/meta.json"


def moe_trainings(wildcards):
    """The edges of a network's trainings."""
    return outputs("train_moe", "meta", moe=wildcards.moe)


def splits_of(rule):
    """The pattern of the splits whose images a rule makes; another rule makes the others at the same paths."""
    places = [f"(?<=/{job['source']}/images/){job['split']}" for job in plan.jobs(rule)]
    return "|".join(places) or "(?!)"


def sources_of(rule):
    """The pattern of the sources that a rule works for; another rule makes the same paths of the others."""
    return "|".join(dict.fromkeys(job["source"] for job in plan.jobs(rule))) or "(?!)"


def refuse_long_paths():
    """Snakemake names its records after paths, and a file name has its limits."""
    longest = max(targets(*FAMILIES)(None), key=len)
    if len(longest) > MAX_PATH:
        raise WorkflowError(
            f"{CONFIG_FILE}: {longest} has {len(longest)} characters, {MAX_PATH} are allowed; shorten the names in it"
        )


wildcard_constraints:
    source="|".join(plan.sources),
    split="|".join(SPLITS),
    basis="|".join(plan.bases),
    coding="|".join(plan.codings),
    layout="label|topk|dense",
    layer=r"layer-\d{2}",
    part=r"\d{5}",
    run="|".join(plan.runs) or "(?!)",
    collection="|".join(plan.collections) or "(?!)",
    moe="|".join(plan.moes) or "(?!)",
    bank="|".join(plan.banks) or "(?!)",
    training="|".join(plan.moe_trainings) or "(?!)",
    size=r"n-\d{5}",
    repeat=r"seed-\d+",
    name=config["name"],
    task="patches|text",
    entry="|".join(config["optimizers"]["entries"]) or "(?!)",
