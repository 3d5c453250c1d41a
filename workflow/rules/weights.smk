# Checkpoints of trainings as rows: artifacts/{source}/runs, artifacts/weights, results/weights.
use rule train as train_run with:
    output:
        **network("artifacts/{source}/runs/{run}"),
    log:
        "logs/train_run/{source}/{run}.log",
    benchmark:
        "logs/train_run/{source}/{run}.tsv"
    params:
        spec=spec_for("train_run"),


rule decompose:
    input:
        trainings=trainings,
    output:
        **artifact("artifacts/weights/{collection}"),
        components="artifacts/weights/{collection}/components.npy",
        mean="artifacts/weights/{collection}/mean.npy",
        layout="artifacts/weights/{collection}/layout.json",
        errors="artifacts/weights/{collection}/errors.json",
    log:
        "logs/decompose/{collection}.log",
    benchmark:
        "logs/decompose/{collection}.tsv"
    conda:
        DEVICE
    threads: 1
    resources:
        **needs("decompose", 4000, 240, config["device"]),
    params:
        spec=spec_for("decompose"),
    shell:
        command("decompose", "meta", "trainings")


rule rebuild:
    input:
        basis="artifacts/weights/{collection}/meta.json",
        trainings=trainings,
        val=judging_images,
    output:
        metrics="results/weights/{collection}/metrics.json",
        curve="results/weights/{collection}/curve.csv",
    log:
        "logs/rebuild/{collection}.log",
    benchmark:
        "logs/rebuild/{collection}.tsv"
    conda:
        DEVICE
    threads: 1
    resources:
        **needs("rebuild", 4000, 60, config["device"]),
    params:
        spec=spec_for("rebuild"),
    shell:
        command("rebuild", "metrics", "basis", "trainings", "val")
