# Images, patch labels, and the network that is trained on them: artifacts/{source}/{images,model,saev}.
rule draw:
    output:
        meta="artifacts/{source}/images/{split}/meta.json",
        images="artifacts/{source}/images/{split}/images.npy",
        masks="artifacts/{source}/images/{split}/masks.npy",
        files="artifacts/{source}/images/{split}/files.json",
        run="artifacts/{source}/images/{split}/run.json",
    log:
        "logs/draw/{source}/{split}.log",
    wildcard_constraints:
        split=splits_of("draw"),
    conda:
        CPU
    threads: 1
    resources:
        **needs("draw", 2000, 30),
    params:
        spec=spec_for("draw"),
    shell:
        command("prepare", "meta")


use rule draw as list_images with:
    input:
        root=lambda wildcards: ancient(plan.sources[wildcards.source].images(wildcards.split)["root"]),
    output:
        meta="artifacts/{source}/images/{split}/meta.json",
        files="artifacts/{source}/images/{split}/files.json",
        run="artifacts/{source}/images/{split}/run.json",
    log:
        "logs/list_images/{source}/{split}.log",
    wildcard_constraints:
        split=splits_of("list_images"),
    params:
        spec=spec_for("list_images"),


rule label:
    input:
        images="artifacts/{source}/images/{split}/meta.json",
    output:
        meta="artifacts/{source}/saev/shards/{split}/labels.json",
        labels="artifacts/{source}/saev/shards/{split}/labels.bin",
        run="artifacts/{source}/saev/shards/{split}/labels.run.json",
    log:
        "logs/label/{source}/{split}.log",
    wildcard_constraints:
        source=sources_of("label"),
    conda:
        CPU
    threads: 1
    resources:
        **needs("label", 2000, 30),
    params:
        spec=spec_for("label"),
    shell:
        command("label", "meta", "images")


rule train:
    input:
        train="artifacts/{source}/images/fit_train/meta.json",
        val="artifacts/{source}/images/fit_val/meta.json",
    output:
        **network("artifacts/{source}/model"),
    log:
        "logs/train/{source}.log",
    benchmark:
        "logs/train/{source}.tsv"
    wildcard_constraints:
        source=sources_of("train"),
    priority: 100  # the longest chain begins here
    conda:
        DEVICE
    threads: 1
    resources:
        **needs("train", 4000, 120, config["device"]),
    params:
        spec=spec_for("train"),
    shell:
        command("train", "meta", "train", "val", threads=1)  # weights depend on it: --set-threads must not


rule pin_model:
    input:
        model=lambda wildcards: list(map(ancient, plan.sources[wildcards.source].network.files())),
    output:
        meta="artifacts/{source}/model/meta.json",
        run="artifacts/{source}/model/run.json",
    log:
        "logs/pin_model/{source}.log",
    wildcard_constraints:
        source=sources_of("pin_model"),
    conda:
        CPU
    threads: 1
    resources:
        **needs("pin_model", 2000, 60),
        download=lambda wildcards: str(plan.sources[wildcards.source].model["download"]).lower(),
    params:
        spec=spec_for("pin_model"),
    shell:
        command("pin_model", "meta", before="export EIGENLOOM_DOWNLOAD={resources.download}; ")
