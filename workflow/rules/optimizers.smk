# Races of optimizers: results/optimizers. The full one, with its sweeps, is a target of its own: optimizers_full.
rule race:
    input:
        train=lambda wildcards: raced_images(wildcards, "fit_train"),
        val=lambda wildcards: raced_images(wildcards, "fit_val"),
    output:
        race="results/optimizers/{source}/reduced/{task}/{entry}.json",
        timing="results/optimizers/{source}/reduced/{task}/{entry}.timing.json",
    log:
        "logs/race/{source}/reduced/{task}/{entry}.log",
    conda:
        CPU
    threads: 1
    resources:
        **needs("race", 2000, 60),
    params:
        spec=spec_for("race"),
    shell:
        command("race", "race", "train", "val", threads=1)


use rule race as race_full with:
    output:
        race="results/optimizers/{source}/full/{task}/{entry}.json",
        timing="results/optimizers/{source}/full/{task}/{entry}.timing.json",
    log:
        "logs/race/{source}/full/{task}/{entry}.log",
    resources:
        **needs("race_full", 2000, 600),
    params:
        spec=spec_for("race_full"),


rule rank_full:
    input:
        races=outputs("race_full", "race"),
    output:
        page="results/optimizers/{source}/full/race.md",
        figure="results/optimizers/{source}/full/race.svg",
    log:
        "logs/rank/{source}/full.log",
    conda:
        CPU
    threads: 1
    resources:
        **needs("rank_full", 2000, 30),
    params:
        spec=spec_for("rank_full"),
    shell:
        command("rank", "page", "races")


rule optimizers_full:
    input:
        outputs("rank_full"),


localrules:
    rank_full,
    optimizers_full,
