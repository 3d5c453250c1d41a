# The checked configuration, and what rules ask of it: specifications, wildcards, targets, GPUs, environments.
import sys

from snakemake.exceptions import WorkflowError
from snakemake.logging import logger

sys.path[:0] = [f"{workflow.basedir}/src", f"{workflow.basedir}/workflow"]

from configuration import check
from eigenloom.provenance import canonical_json
from plan import FAMILIES, PROBE_SPLITS, SPLITS, Plan
from specs import Specs

CONFIG_FILE = ", ".join(os.path.relpath(path) for path in workflow.overwrite_configfiles) or "config.yaml"
MAX_PATH = 100

if mistakes := check(config):
    raise WorkflowError(*(f"{CONFIG_FILE}: {line}" for line in mistakes))

plan = Plan(config)
specs = Specs(plan)
ENVIRONMENT = "../../envs/cpu.yaml" if config["device"] in ("cpu", "mps") else "../../envs/gpu.yaml"
shell.prefix("export PYTHONPATH=src${{PYTHONPATH:+:$PYTHONPATH}}; ")


def spec_for(rule):
    """The one parameter of a rule: canonical JSON of all that changes its result."""
    return lambda wildcards: specs.text(rule, dict(wildcards.items()))


def gpus(rule):
    """1 where the device may be a GPU and the rule's work profits from one, else 0."""
    return lambda wildcards: plan.gpus(rule, dict(wildcards.items()))


def only(*keys, rule):
    """A pattern for the last key that admits exactly the wildcards a rule has jobs for."""


def outputs(rule):
    """Every output of every job of a rule."""
    return [template.format(**job) for job in plan.jobs(rule) for template in map(str, getattr(rules, rule).output)]


def targets(*families):
    """Every file of some families."""
    return lambda wildcards: [path for family in families for rule in FAMILIES[family] for path in outputs(rule)]


def refuse_long_paths():
    """Snakemake names its records after paths, which must fit into a file name."""
    longest = max((path for rules_ in FAMILIES.values() for rule in rules_ for path in outputs(rule)), key=len)
    if len(longest) > MAX_PATH:
        raise WorkflowError(
            f"{CONFIG_FILE}: {longest} has {len(longest)} characters, {MAX_PATH} are allowed; shorten the names in it"
        )


wildcard_constraints:
    source="|".join(plan.sources),
    split="|".join(SPLITS),
    basis="|".join(plan.bases),
    layout="label|topk|dense",
    coding="|".join(sorted({coding for basis in plan.bases for source in plan.sources for coding in plan.sweep(basis, source)})),
    layer=r"layer-\d{2}",
    part=r"\d{5}",
    name=config["name"],
