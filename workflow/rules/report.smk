# The table of all results, and the page with its figures: results/tables, results/reports.
rule tabulate:
    input:
        metrics=outputs("score", "metrics"),
    output:
        table="results/tables/{name}/table.json",
        csv=figure("tables/{name}/table.csv", "Tables"),
        markdown="results/tables/{name}/table.md",
        summary="results/tables/{name}/summary.json",
        manifest="results/tables/{name}/manifest.json",
        manifest_csv="results/tables/{name}/manifest.csv",
    log:
        "logs/tabulate/{name}.log",
    conda:
        CPU
    threads: 1
    resources:
        **needs("tabulate", 2000, 30),
    params:
        spec=spec_for("tabulate"),
    shell:
        command("write_tables", "table", "metrics")


rule illustrate:
    input:
        store="artifacts/{source}/saev/shards/probe_val/store.json",
        images="artifacts/{source}/images/probe_val/meta.json",
        metrics=lambda wildcards: outputs("score", "metrics", source=wildcards.source),
        bases=lambda wildcards: configured_bases(wildcards.source),
    output:
        gallery="results/galleries/{name}/{source}/gallery.json",
        pictures="results/galleries/{name}/{source}/pictures.jpg",
        maps="results/galleries/{name}/{source}/maps.png",
    log:
        "logs/illustrate/{name}/{source}.log",
    conda:
        DEVICE
    threads: 1
    resources:
        **needs("illustrate", 4000, 60, config["device"]),
    params:
        spec=spec_for("illustrate"),
    shell:
        command("illustrate", "gallery", "store", "images", "metrics", "bases")


rule render:
    input:
        tables="results/tables/{name}/table.json",
        metrics=outputs("score", "metrics"),
        reconstructions=outputs("evaluate", "reconstruction"),
        bases=outputs("fit", "meta"),
        models=outputs("train", "meta"),
        spectra=outputs("list_spectra", "meta"),
        weights=outputs("rebuild", "metrics"),
        experts=outputs("tabulate_experts", "table"),
        denoised=outputs("score_denoised", "metrics"),
        arms=outputs("compare_arms", "table"),
        races=outputs("race", "race"),
        galleries=outputs("illustrate", "gallery"),
    output:
        page=figure("reports/{name}/index.html", "Report"),
        nmse_l0=figure("reports/{name}/nmse_l0.svg"),
        layers=figure("reports/{name}/layers.svg"),
        classes=figure("reports/{name}/classes.svg"),
        probe_map=figure("reports/{name}/probe_map.svg"),
        utilisation=figure("reports/{name}/utilisation.svg"),
        history=figure("reports/{name}/history.svg"),
        weights=figure("reports/{name}/weights.svg"),
        weight_paths=figure("reports/{name}/weight_paths.svg"),
        experts=figure("reports/{name}/experts.svg"),
        expert_map=figure("reports/{name}/expert_map.svg"),
        denoised_figure=figure("reports/{name}/denoised.svg"),
        denoising=figure("reports/{name}/denoising.svg"),
        attention=figure("reports/{name}/attention.svg"),
        optimizers=figure("reports/{name}/optimizers.svg"),
    log:
        "logs/render/{name}.log",
    conda:
        CPU
    threads: 1
    resources:
        **needs("render", 2000, 30),
    params:
        spec=spec_for("render"),
    shell:
        command(
            "render",
            "page",
            "tables",
            "metrics",
            "reconstructions",
            "bases",
            "models",
            "spectra",
            "weights",
            "experts",
            "denoised",
            "arms",
            "races",
            "galleries",
        )
