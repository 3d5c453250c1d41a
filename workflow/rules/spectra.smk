# Surveys of spectra, simulated or the user's own, their splits, labels and denoised copies:
# artifacts/{source}/{spectra,saev,denoised}, results/{source}/denoised.
rule simulate:
    output:
        meta="artifacts/{source}/spectra/meta.json",
        survey="artifacts/{source}/spectra/survey.h5",
        run="artifacts/{source}/spectra/run.json",
    log:
        "logs/simulate/{source}.log",
    conda:
        CPU
    threads: 1
    resources:
        **needs("simulate", 2000, 60),
    params:
        spec=spec_for("simulate"),
    shell:
        command("simulate", "meta")


rule list_spectra:
    input:
        survey=lambda wildcards: outputs("simulate", "meta", source=wildcards.source),
        file=lambda wildcards: list(map(ancient, plan.sources[wildcards.source].files())),
    output:
        meta="artifacts/{source}/spectra/{split}/meta.json",
        rows="artifacts/{source}/spectra/{split}/rows.npy",
        wavelength="artifacts/{source}/spectra/{split}/wavelength.npy",
        run="artifacts/{source}/spectra/{split}/run.json",
    log:
        "logs/list_spectra/{source}/{split}.log",
    conda:
        CPU
    threads: 1
    resources:
        **needs("list_spectra", 2000, 60),
    params:
        spec=spec_for("list_spectra"),
    shell:
        command("list_spectra", "meta", "survey")


rule label_spectra:
    input:
        examples="artifacts/{source}/spectra/{split}/meta.json",
        survey=lambda wildcards: outputs("simulate", "meta", source=wildcards.source),
    output:
        meta="artifacts/{source}/saev/shards/{split}/labels.json",
        labels="artifacts/{source}/saev/shards/{split}/labels.bin",
        run="artifacts/{source}/saev/shards/{split}/labels.run.json",
    log:
        "logs/label_spectra/{source}/{split}.log",
    wildcard_constraints:
        source=sources_of("label_spectra"),
    conda:
        CPU
    threads: 1
    resources:
        **needs("label_spectra", 2000, 30),
    params:
        spec=spec_for("label_spectra"),
    shell:
        command("label_spectra", "meta", "examples", "survey")


rule denoise:
    input:
        survey=lambda wildcards: outputs("simulate", "meta", source=wildcards.source),
        file=lambda wildcards: list(map(ancient, plan.sources[wildcards.source].files())),
    output:
        meta="artifacts/{source}/denoised/meta.json",
        survey="artifacts/{source}/denoised/survey.pcp.h5",
        run="artifacts/{source}/denoised/run.json",
    log:
        "logs/denoise/{source}.log",
    benchmark:
        "logs/denoise/{source}.tsv"
    conda:
        CPU
    threads: 1
    resources:
        **needs("denoise", 4000, 240),
    params:
        spec=spec_for("denoise"),
    shell:
        command("denoise", "meta", "survey")


rule score_denoised:
    input:
        denoised="artifacts/{source}/denoised/meta.json",
        survey=lambda wildcards: outputs("simulate", "meta", source=wildcards.source),
        file=lambda wildcards: list(map(ancient, plan.sources[wildcards.source].files())),
    output:
        metrics="results/{source}/denoised/metrics.json",
        examples="results/{source}/denoised/examples.json",
    log:
        "logs/score_denoised/{source}.log",
    conda:
        CPU
    threads: 1
    resources:
        **needs("score_denoised", 4000, 60),
    params:
        spec=spec_for("score_denoised"),
    shell:
        command("score_denoised", "metrics", "denoised", "survey")
