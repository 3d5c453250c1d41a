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


# With a rate limit (100 jobs a second unless told otherwise) every job that ends leaves Snakemake 9.27 with one more timer
# that looks for work each second, until a sixth of a core is spent on looking. No machine is fed that fast.
onstart:
    limit = workflow.scheduling_settings.max_jobs_per_timespan
    if limit and (limit.max_jobs, limit.timespan) == (100, 1):
        workflow.scheduler.job_rate_limiter = None


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
