# Recorded rows of every split, one job per shard: artifacts/{source}/saev.
rule record:
    input:
        images="artifacts/{source}/images/{split}/meta.json",
        model=lambda wildcards: plan.sources[wildcards.source].model_edges(),
    output:
        shard="artifacts/{source}/saev/shards/{split}/shard-{part}.json",
        acts="artifacts/{source}/saev/shards/{split}/acts0{part}.bin",
        run="artifacts/{source}/saev/shards/{split}/shard-{part}.run.json",
    log:
        "logs/record/{source}/{split}/{part}.log",
    benchmark:
        "logs/record/{source}/{split}/{part}.tsv"
    wildcard_constraints:
        source=sources_of("record"),
    conda:
        DEVICE
    threads: 1
    resources:
        **needs("record", 4000, 120, config["device"]),
    params:
        spec=spec_for("record"),
    shell:
        command("record", "shard", "images", "model")


rule record_spectra:
    input:
        examples="artifacts/{source}/spectra/{split}/meta.json",
        survey=lambda wildcards: outputs("simulate", "meta", source=wildcards.source),
    output:
        shard="artifacts/{source}/saev/shards/{split}/shard-{part}.json",
        acts="artifacts/{source}/saev/shards/{split}/acts0{part}.bin",
        run="artifacts/{source}/saev/shards/{split}/shard-{part}.run.json",
    log:
        "logs/record_spectra/{source}/{split}/{part}.log",
    wildcard_constraints:
        source=sources_of("record_spectra"),
    conda:
        CPU
    threads: 1
    resources:
        **needs("record_spectra", 2000, 60),
    params:
        spec=spec_for("record_spectra"),
    shell:
        command("record_spectra", "shard", "examples", "survey")


rule join_store:
    input:
        examples=lambda wildcards: plan.sources[wildcards.source].examples_edge(wildcards.split),
        model=lambda wildcards: plan.sources[wildcards.source].model_edges(),
        shards=lambda wildcards: outputs(plan.sources[wildcards.source].recorder, "shard", **wildcards),
        labels=lambda wildcards: outputs(plan.sources[wildcards.source].labeller, "meta", **wildcards),
    output:
        store="artifacts/{source}/saev/shards/{split}/store.json",
        metadata="artifacts/{source}/saev/shards/{split}/metadata.json",
        shards="artifacts/{source}/saev/shards/{split}/shards.json",
        run="artifacts/{source}/saev/shards/{split}/run.json",
    log:
        "logs/join_store/{source}/{split}.log",
    wildcard_constraints:
        source=sources_of("join_store"),
    conda:
        CPU
    threads: 1
    resources:
        **needs("join_store", 2000, 30),
    params:
        spec=spec_for("join_store"),
    shell:
        command("join_store", "store", "examples", "model", "shards", "labels")


rule adopt:
    input:
        files=lambda wildcards: plan.sources[wildcards.source].files(wildcards.split),
    output:
        store="artifacts/{source}/saev/shards/{split}/store.json",
        run="artifacts/{source}/saev/shards/{split}/run.json",
    log:
        "logs/adopt/{source}/{split}.log",
    wildcard_constraints:
        source=sources_of("adopt"),
    conda:
        CPU
    threads: 1
    resources:
        **needs("adopt", 2000, 60),
    params:
        spec=spec_for("adopt"),
    shell:
        command("adopt", "store")
