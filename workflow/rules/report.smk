# The table of all results, and the page with its figures: results/tables, results/reports.
rule tabulate:
    input:
        metrics=outputs("score", "metrics"),
    output:
        table="results/tables/{name}/table.json",
        csv="results/tables/{name}/table.csv",
        markdown="results/tables/{name}/table.md",
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
        command("tabulate", "table", "metrics")


rule render:
    input:
        table="results/tables/{name}/table.json",
        metrics=outputs("score", "metrics"),
        bases=outputs("fit", "meta"),
    output:
        page=report("results/reports/{name}/index.html", caption="../report/index.rst", category="Report"),
        nmse_l0=report("results/reports/{name}/nmse_l0.svg", caption="../report/nmse_l0.rst", category="Figures"),
        layers=report("results/reports/{name}/layers.svg", caption="../report/layers.rst", category="Figures"),
        utilisation=report(
            "results/reports/{name}/utilisation.svg", caption="../report/utilisation.rst", category="Figures"
        ),
        history=report("results/reports/{name}/history.svg", caption="../report/history.rst", category="Figures"),
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
        command("render", "page", "table", "metrics", "bases")


localrules:
    tabulate,
    render,
