# The order of a run, from raw data to the report; each family of rules has its file, each family of files its target.
from snakemake.utils import min_version

min_version("9.27")

if not workflow.overwrite_configfiles:

    configfile: "config.yaml"


include: "workflow/rules/common.smk"
include: "workflow/rules/sources.smk"
include: "workflow/rules/texts.smk"
include: "workflow/rules/spectra.smk"
include: "workflow/rules/attention.smk"
include: "workflow/rules/stores.smk"
include: "workflow/rules/stats.smk"
include: "workflow/rules/fit.smk"
include: "workflow/rules/encode.smk"
include: "workflow/rules/weights.smk"
include: "workflow/rules/evaluate.smk"
include: "workflow/rules/probe.smk"
include: "workflow/rules/experts.smk"
include: "workflow/rules/optimizers.smk"
include: "workflow/rules/report.smk"
include: "workflow/rules/records.smk"


refuse_long_paths()


rule all:
    default_target: True
    input:
        targets(*FAMILIES),


for family in FAMILIES:

    rule:
        name:
            family
        input:
            targets(family),
            beside(family),
