# Codes on disk, one job per part and a manifest per split: artifacts/{source}/codes.
rule encode_label:
    input:
        store="artifacts/{source}/saev/shards/{split}/store.json",
        basis="artifacts/{source}/bases/{basis}/{layer}/meta.json",
    output:
        part="artifacts/{source}/codes/{basis}/label/{layer}/{split}/part-{part}.json",
        labels="artifacts/{source}/codes/{basis}/label/{layer}/{split}/part-{part}.labels.bin",
        distances="artifacts/{source}/codes/{basis}/label/{layer}/{split}/part-{part}.distances.bin",
        stats="artifacts/{source}/codes/{basis}/label/{layer}/{split}/part-{part}.stats.safetensors",
        errors="artifacts/{source}/codes/{basis}/label/{layer}/{split}/part-{part}.errors.bin",
        run="artifacts/{source}/codes/{basis}/label/{layer}/{split}/part-{part}.run.json",
    log:
        "logs/encode_label/{source}/{basis}/{layer}/{split}/{part}.log",
    benchmark:
        "logs/encode_label/{source}/{basis}/{layer}/{split}/{part}.tsv"
    conda:
        DEVICE
    threads: 1
    resources:
        **needs("encode_label", 4000, 60, config["device"]),
    params:
        spec=spec_for("encode_label"),
    shell:
        command("encode", "part", "store", "basis")


use rule encode_label as encode_topk with:
    output:
        part="artifacts/{source}/codes/{basis}/topk/{layer}/{split}/part-{part}.json",
        values="artifacts/{source}/codes/{basis}/topk/{layer}/{split}/part-{part}.values.bin",
        indices="artifacts/{source}/codes/{basis}/topk/{layer}/{split}/part-{part}.indices.bin",
        stats="artifacts/{source}/codes/{basis}/topk/{layer}/{split}/part-{part}.stats.safetensors",
        errors="artifacts/{source}/codes/{basis}/topk/{layer}/{split}/part-{part}.errors.bin",
        run="artifacts/{source}/codes/{basis}/topk/{layer}/{split}/part-{part}.run.json",
    log:
        "logs/encode_topk/{source}/{basis}/{layer}/{split}/{part}.log",
    benchmark:
        "logs/encode_topk/{source}/{basis}/{layer}/{split}/{part}.tsv"
    params:
        spec=spec_for("encode_topk"),


use rule encode_label as encode_dense with:
    output:
        part="artifacts/{source}/codes/{basis}/dense/{layer}/{split}/part-{part}.json",
        values="artifacts/{source}/codes/{basis}/dense/{layer}/{split}/part-{part}.values.bin",
        stats="artifacts/{source}/codes/{basis}/dense/{layer}/{split}/part-{part}.stats.safetensors",
        errors="artifacts/{source}/codes/{basis}/dense/{layer}/{split}/part-{part}.errors.bin",
        run="artifacts/{source}/codes/{basis}/dense/{layer}/{split}/part-{part}.run.json",
    log:
        "logs/encode_dense/{source}/{basis}/{layer}/{split}/{part}.log",
    benchmark:
        "logs/encode_dense/{source}/{basis}/{layer}/{split}/{part}.tsv"
    params:
        spec=spec_for("encode_dense"),


rule join_codes:
    input:
        parts=parts,
    output:
        manifest="artifacts/{source}/codes/{basis}/{layout}/{layer}/{split}/manifest.json",
        run="artifacts/{source}/codes/{basis}/{layout}/{layer}/{split}/run.json",
    log:
        "logs/join_codes/{source}/{basis}/{layout}/{layer}/{split}.log",
    conda:
        CPU
    threads: 1
    resources:
        **needs("join_codes", 2000, 10),
    params:
        spec=spec_for("join_codes"),
    shell:
        command("join_codes", "manifest", "parts")
