# Mixtures of experts on the digits, and banks of their experts: artifacts/{moe}, results/{moe}, results/tables.
rule train_moe:
    output:
        meta="artifacts/{moe}/trainings/{training}/meta.json",
        config="artifacts/{moe}/trainings/{training}/config.json",
        weights="artifacts/{moe}/trainings/{training}/model.safetensors",
        history="artifacts/{moe}/trainings/{training}/history.csv",
        run="artifacts/{moe}/trainings/{training}/run.json",
    log:
        "logs/train_moe/{moe}/{training}.log",
    benchmark:
        "logs/train_moe/{moe}/{training}.tsv"
    conda:
        CPU
    threads: 1
    resources:
        **needs("train_moe", 2000, 30),
    params:
        spec=spec_for("train_moe"),
    shell:
        command("train_moe", "meta")


rule fit_bank:
    input:
        trainings=moe_trainings,
    output:
        **artifact("artifacts/{moe}/{bank}"),
    log:
        "logs/fit_bank/{moe}/{bank}.log",
    benchmark:
        "logs/fit_bank/{moe}/{bank}.tsv"
    conda:
        CPU
    threads: 1
    resources:
        **needs("fit_bank", 2000, 60),
    params:
        spec=spec_for("fit_bank"),
    shell:
        command("fit_bank", "meta", "trainings")


rule judge_bank:
    input:
        banks="artifacts/{moe}/{bank}/meta.json",
        trainings=moe_trainings,
    output:
        metrics="results/{moe}/{bank}/metrics.json",
    log:
        "logs/judge_bank/{moe}/{bank}.log",
    conda:
        CPU
    threads: 1
    resources:
        **needs("judge_bank", 2000, 30),
    params:
        spec=spec_for("judge_bank"),
    shell:
        command("judge_bank", "metrics", "banks", "trainings")


rule judge_baselines:
    input:
        trainings=moe_trainings,
    output:
        metrics="results/{moe}/baselines/metrics.json",
    log:
        "logs/judge_baselines/{moe}.log",
    conda:
        CPU
    threads: 1
    resources:
        **needs("judge_baselines", 2000, 60),
    params:
        spec=spec_for("judge_baselines"),
    shell:
        command("judge_baselines", "metrics", "trainings")


rule tabulate_experts:
    input:
        metrics=outputs("judge_bank", "metrics") + outputs("judge_baselines", "metrics"),
    output:
        table="results/tables/{name}/experts.json",
        csv=figure("tables/{name}/experts.csv", "Tables"),
    log:
        "logs/tabulate_experts/{name}.log",
    conda:
        CPU
    threads: 1
    resources:
        **needs("tabulate_experts", 2000, 30),
    params:
        spec=spec_for("tabulate_experts"),
    shell:
        command("tabulate_experts", "table", "metrics")
