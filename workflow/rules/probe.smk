# What each single feature knows of each class, beside the same for random features: artifacts/{source}/probes.
rule probe:
    input:
        train="artifacts/{source}/saev/shards/probe_train/store.json",
        val="artifacts/{source}/saev/shards/probe_val/store.json",
        basis="artifacts/{source}/bases/{basis}/{layer}/meta.json",
        train_codes=lambda wildcards: manifest(wildcards, "probe_train"),
        val_codes=lambda wildcards: manifest(wildcards, "probe_val"),
    output:
        **artifact("artifacts/{source}/probes/{basis}/{coding}/{layer}"),
    log:
        "logs/probe/{source}/{basis}/{coding}/{layer}.log",
    benchmark:
        "logs/probe/{source}/{basis}/{coding}/{layer}.tsv"
    conda:
        DEVICE
    threads: 1
    resources:
        **needs("probe", 4000, 120, config["device"]),
    params:
        spec=spec_for("probe"),
    shell:
        command("probe", "meta", "train", "val", "basis", "train_codes", "val_codes")


rule score:
    input:
        reconstruction="results/{source}/{layer}/{basis}/reconstruction.json",
        probe="artifacts/{source}/probes/{basis}/{coding}/{layer}/meta.json",
        floor_reconstruction="results/{source}/{layer}/{basis}-random/reconstruction.json",
        floor_probe="artifacts/{source}/probes/{basis}-random/{coding}/{layer}/meta.json",
        basis="artifacts/{source}/bases/{basis}/{layer}/meta.json",
    output:
        metrics="results/{source}/{layer}/{basis}/{coding}/metrics.json",
        classes="results/{source}/{layer}/{basis}/{coding}/per_class.csv",
        features="results/{source}/{layer}/{basis}/{coding}/features.csv",
    log:
        "logs/score/{source}/{layer}/{basis}/{coding}.log",
    conda:
        CPU
    threads: 1
    resources:
        **needs("score", 2000, 10),
    params:
        spec=spec_for("score"),
    shell:
        command("score", "metrics", "reconstruction", "probe", "floor_reconstruction", "floor_probe", "basis")
