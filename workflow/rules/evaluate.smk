# What a basis reconstructs of rows it was not fitted to: results/{source}/{layer}/{basis}/reconstruction.json.
rule evaluate:
    input:
        store="artifacts/{source}/saev/shards/fit_val/store.json",
        basis="artifacts/{source}/bases/{basis}/{layer}/meta.json",
        moments="artifacts/{source}/moments/fit_val/{layer}/meta.json",
        fit_moments="artifacts/{source}/moments/fit_train/{layer}/meta.json",
    output:
        reconstruction="results/{source}/{layer}/{basis}/reconstruction.json",
        curve="results/{source}/{layer}/{basis}/nmse_curve.csv",
    log:
        "logs/evaluate/{source}/{layer}/{basis}.log",
    benchmark:
        "logs/evaluate/{source}/{layer}/{basis}.tsv"
    conda:
        DEVICE
    threads: 1
    resources:
        **needs("evaluate", 4000, 60, config["device"]),
    params:
        spec=spec_for("evaluate"),
    shell:
        command("evaluate", "reconstruction", "store", "basis", "moments", "fit_moments")
