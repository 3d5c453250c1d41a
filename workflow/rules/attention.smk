# Attention that starts from kernel PCA of spectra, beside its controls: artifacts/{source}/attention,
# results/{source}/attention; and the same with more spectra and seeds, on request: attention-full.
from warm_study import ARMS, FULL_ARMS


rule fit_patches:
    input:
        survey=lambda wildcards: outputs("simulate", "meta", source=wildcards.source),
        file=lambda wildcards: list(map(ancient, plan.sources[wildcards.source].files())),
    output:
        **artifact("artifacts/{source}/attention/{size}"),
    log:
        "logs/fit_patches/{source}/{size}.log",
    conda:
        DEVICE
    threads: 1
    resources:
        **needs("fit_patches", 4000, 60, config["device"]),
    params:
        spec=spec_for("fit_patches"),
    shell:
        command("fit_patches", "meta", "survey")


rule train_arms:
    input:
        survey=lambda wildcards: outputs("simulate", "meta", source=wildcards.source),
        file=lambda wildcards: list(map(ancient, plan.sources[wildcards.source].files())),
        basis="artifacts/{source}/attention/{size}/meta.json",
    output:
        baseline=f"results/{{source}}/attention/{{size}}/{{repeat}}/{ARMS[0]}.json",
        others=[f"results/{{source}}/attention/{{size}}/{{repeat}}/{arm}.json" for arm in ARMS[1:]],
    log:
        "logs/train_arms/{source}/{size}-{repeat}.log",
    benchmark:
        "logs/train_arms/{source}/{size}-{repeat}.tsv"
    conda:
        CPU
    threads: 1
    resources:
        **needs("train_arms", 4000, 120),
    params:
        spec=spec_for("train_arms"),
    shell:
        command("train_arms", "baseline", "survey", "basis")


rule compare_arms:
    input:
        arms=lambda wildcards: outputs("train_arms", source=wildcards.source),
    output:
        table="results/{source}/attention/table.json",
        csv="results/{source}/attention/table.csv",
        markdown="results/{source}/attention/table.md",
    log:
        "logs/compare_arms/{source}.log",
    conda:
        CPU
    threads: 1
    resources:
        **needs("compare_arms", 2000, 30),
    params:
        spec=spec_for("compare_arms"),
    shell:
        command("compare_arms", "table", "arms")


use rule simulate as simulate_full with:
    output:
        meta="artifacts/{source}/attention-full/survey/meta.json",
        survey="artifacts/{source}/attention-full/survey/survey.h5",
        run="artifacts/{source}/attention-full/survey/run.json",
    log:
        "logs/simulate_full/{source}.log",
    params:
        spec=spec_for("simulate_full"),


use rule fit_patches as fit_patches_full with:
    input:
        survey=lambda wildcards: outputs("simulate_full", "meta", source=wildcards.source),
        file=lambda wildcards: list(map(ancient, plan.sources[wildcards.source].files())),
    output:
        **artifact("artifacts/{source}/attention-full/{size}"),
    log:
        "logs/fit_patches_full/{source}/{size}.log",
    params:
        spec=spec_for("fit_patches_full"),


use rule train_arms as train_arms_full with:
    input:
        survey=lambda wildcards: outputs("simulate_full", "meta", source=wildcards.source),
        file=lambda wildcards: list(map(ancient, plan.sources[wildcards.source].files())),
        basis="artifacts/{source}/attention-full/{size}/meta.json",
    output:
        baseline=f"results/{{source}}/attention-full/{{size}}/{{repeat}}/{FULL_ARMS[0]}.json",
        others=[f"results/{{source}}/attention-full/{{size}}/{{repeat}}/{arm}.json" for arm in FULL_ARMS[1:]],
    log:
        "logs/train_arms_full/{source}/{size}-{repeat}.log",
    benchmark:
        "logs/train_arms_full/{source}/{size}-{repeat}.tsv"
    params:
        spec=spec_for("train_arms_full"),


use rule compare_arms as compare_arms_full with:
    input:
        arms=lambda wildcards: outputs("train_arms_full", source=wildcards.source),
    output:
        table="results/{source}/attention-full/table.json",
        csv="results/{source}/attention-full/table.csv",
        markdown="results/{source}/attention-full/table.md",
    log:
        "logs/compare_arms_full/{source}.log",
    params:
        spec=spec_for("compare_arms_full"),


rule spectra_full:
    input:
        outputs("compare_arms_full", "table"),
