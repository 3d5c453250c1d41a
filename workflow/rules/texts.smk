# Texts, the network they go through, and their labels: artifacts/{source}/{texts,model,saev}.
rule pin_text_model:
    input:
        model=lambda wildcards: list(map(ancient, plan.sources[wildcards.source].checkpoint.files())),
    output:
        meta="artifacts/{source}/model/meta.json",
        run="artifacts/{source}/model/run.json",
    log:
        "logs/pin_text_model/{source}.log",
    wildcard_constraints:
        source=sources_of("pin_text_model"),
    conda:
        CPU
    threads: 1
    resources:
        **needs("pin_text_model", 2000, 60),
        download=lambda wildcards: str(plan.sources[wildcards.source].model["download"]).lower(),
    params:
        spec=spec_for("pin_text_model"),
    shell:
        command("pin_text_model", "meta", before="export EIGENLOOM_DOWNLOAD={resources.download}; ")


rule list_texts:
    input:
        model="artifacts/{source}/model/meta.json",
        texts=lambda wildcards: ancient(plan.sources[wildcards.source].text(wildcards.split)),
    output:
        meta="artifacts/{source}/texts/{split}/meta.json",
        tokens="artifacts/{source}/texts/{split}/tokens.npy",
        labels="artifacts/{source}/texts/{split}/labels.npy",
        run="artifacts/{source}/texts/{split}/run.json",
    log:
        "logs/list_texts/{source}/{split}.log",
    conda:
        CPU
    threads: 1
    resources:
        **needs("list_texts", 4000, 60),
    params:
        spec=spec_for("list_texts"),
    shell:
        command("list_texts", "meta", "model")


rule label_texts:
    input:
        examples="artifacts/{source}/texts/{split}/meta.json",
    output:
        meta="artifacts/{source}/saev/shards/{split}/labels.json",
        labels="artifacts/{source}/saev/shards/{split}/labels.bin",
        run="artifacts/{source}/saev/shards/{split}/labels.run.json",
    log:
        "logs/label_texts/{source}/{split}.log",
    wildcard_constraints:
        source=sources_of("label_texts"),
    conda:
        CPU
    threads: 1
    resources:
        **needs("label_texts", 2000, 30),
    params:
        spec=spec_for("label_texts"),
    shell:
        command("label_texts", "meta", "examples")


rule record_texts:
    input:
        examples="artifacts/{source}/texts/{split}/meta.json",
        model="artifacts/{source}/model/meta.json",
    output:
        shard="artifacts/{source}/saev/shards/{split}/shard-{part}.json",
        acts="artifacts/{source}/saev/shards/{split}/acts0{part}.bin",
        run="artifacts/{source}/saev/shards/{split}/shard-{part}.run.json",
    log:
        "logs/record_texts/{source}/{split}/{part}.log",
    benchmark:
        "logs/record_texts/{source}/{split}/{part}.tsv"
    wildcard_constraints:
        source=sources_of("record_texts"),
    conda:
        DEVICE
    threads: 1
    resources:
        **needs("record_texts", 4000, 120, config["device"]),
    params:
        spec=spec_for("record_texts"),
    shell:
        command("record_texts", "shard", "examples", "model")
