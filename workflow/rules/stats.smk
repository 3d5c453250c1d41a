# Mean and scatter of every layer of the fitting splits, exact, in one pass: artifacts/{source}/moments.
rule measure:
    input:
        store="artifacts/{source}/saev/shards/{split}/store.json",
    output:
        part="artifacts/{source}/moments/{split}/part-{part}.json",
        arrays="artifacts/{source}/moments/{split}/part-{part}.safetensors",
        run="artifacts/{source}/moments/{split}/part-{part}.run.json",
    log:
        "logs/measure/{source}/{split}/{part}.log",
    benchmark:
        "logs/measure/{source}/{split}/{part}.tsv"
    conda:
        DEVICE
    threads: 1
    resources:
        **needs("measure", 4000, 60, config["device"]),
    params:
        spec=spec_for("measure"),
    shell:
        command("measure", "part", "store")


rule join_moments:
    input:
        store="artifacts/{source}/saev/shards/{split}/store.json",
        parts=lambda wildcards: outputs("measure", "part", source=wildcards.source, split=wildcards.split),
    output:
        **artifact("artifacts/{source}/moments/{split}/{layer}"),
    log:
        "logs/join_moments/{source}/{split}/{layer}.log",
    conda:
        CPU
    threads: 1
    resources:
        **needs("join_moments", 2000, 30),
    params:
        spec=spec_for("join_moments"),
    shell:
        command("join_moments", "meta", "store", "parts")
