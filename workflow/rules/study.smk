# The tables, figures and the page of every study, and what figures show that see a network draw.


rule look:
    input:
        learned=lambda wildcards: learned_to_look_at(wildcards.study),
        captions=lambda wildcards: CAPTIONS_RECORD.format(world=LOOKED[wildcards.study].world),
        embeddings=lambda wildcards: EMBEDDINGS_RECORD.format(world=LOOKED[wildcards.study].world),
    output:
        f"{RESULTS}/looked/{{study}}.json",
    params:
        code=lambda wildcards: code_hash("look", LOOKED[wildcards.study].world),
        figures=lambda wildcards: [figure.model_dump_json() for figure in LOOKED[wildcards.study].figures],
        place=lambda wildcards: study_file(wildcards.study),
        config=CONFIG_FILE,
        batch=CONFIG.batch,
    log:
        f"{LOGS}/look/{{study}}.log",
    benchmark:
        f"{BENCHMARKS}/look/{{study}}.tsv"
    threads: 1
    resources:
        mem_mb=more_each_time(4000),
        gpu=GPUS,
    retries: 1  # see more_each_time
    shell:
        "OMP_NUM_THREADS={threads} ditbench look {params.place:q} --config {params.config} --batch {params.batch} "
        "--out {output} --code {params.code} 2> >(tee {log} >&2)"


rule report:
    input:
        cell_records("spec", "scores", "cost", "latency"),
        expand(f"{RESULTS}/looked/{{study}}.json", study=list(LOOKED)),
        [FAILED_RUN] if Path(FAILED_RUN).exists() else [],
        lambda wildcards: CONFIG.elsewhere,
    output:
        page=report(PAGE, category="Studies"),
        tables=expand(
            f"{RESULTS}/studies/{{study}}/table.{{form}}",
            study=[study.name for study in run_studies(CONFIG)],
            form=["md", "tex", "csv", "html"],
        ),
    params:
        code=code_hash("report"),
        studies=texts_of_studies,
        config=CONFIG_FILE,
    log:
        f"{LOGS}/report.log",
    benchmark:
        f"{BENCHMARKS}/report.tsv"
    resources:
        mem_mb=2000,
    shell:
        "ditbench report --config {params.config} 2> >(tee {log} >&2)"
