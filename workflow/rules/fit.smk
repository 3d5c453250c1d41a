# Bases and their random floors: artifacts/{source}/bases.
rule fit:
    input:
        store="artifacts/{source}/saev/shards/fit_train/store.json",
        moments="artifacts/{source}/moments/fit_train/{layer}/meta.json",
        file=lambda wildcards: plan.file(wildcards.basis, wildcards.layer) or [],
    output:
        **artifact("artifacts/{source}/bases/{basis}/{layer}"),
    log:
        "logs/fit/{source}/{basis}/{layer}.log",
    benchmark:
        "logs/fit/{source}/{basis}/{layer}.tsv"
    conda:
        DEVICE
    threads: 1
    resources:
        **needs("fit", 4000, 240, config["device"]),
    params:
        spec=spec_for("fit"),
    shell:
        command("fit", "meta", "store", "moments")
