# Recorded activations of every split, one job per shard: artifacts/{source}/saev.
rule record:
    input:
        images="artifacts/{source}/images/{split}/meta.json",
        model=lambda wildcards: f"artifacts/{plan.sources[wildcards.source].model_source}/model/meta.json",
    output:
        shard="artifacts/{source}/saev/shards/{split}/shard-{part}.json",
        acts="artifacts/{source}/saev/shards/{split}/acts0{part}.bin",
        run="artifacts/{source}/saev/shards/{split}/shard-{part}.run.json",
    log:
        "logs/record/{source}/{split}/{part}.log",
    benchmark:
        "logs/record/{source}/{split}/{part}.tsv"
    conda:
        DEVICE
    threads: 1
    resources:
        **needs("record", 4000, 120, config["device"]),
    params:
        spec=spec_for("record"),
    shell:
        command("record", "shard", "images", "model")


rule join_store:
    input:
        images="artifacts/{source}/images/{split}/meta.json",
        model=lambda wildcards: f"artifacts/{plan.sources[wildcards.source].model_source}/model/meta.json",
        shards=lambda wildcards: outputs("record", "shard", **wildcards),
        labels=lambda wildcards: outputs("label", "meta", **wildcards),
    output:
        store="artifacts/{source}/saev/shards/{split}/store.json",
        metadata="artifacts/{source}/saev/shards/{split}/metadata.json",
        shards="artifacts/{source}/saev/shards/{split}/shards.json",
        run="artifacts/{source}/saev/shards/{split}/run.json",
    log:
        "logs/join_store/{source}/{split}.log",
    conda:
        CPU
    threads: 1
    resources:
        **needs("join_store", 2000, 30),
    params:
        spec=spec_for("join_store"),
    shell:
        command("join_store", "store", "images", "model", "shards", "labels")
