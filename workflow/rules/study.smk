# The tables, figures and the page of every study.


rule report:
    input:
        cell_records("spec", "scores", "cost", "latency"),
        [FAILED_RUN] if Path(FAILED_RUN).exists() else [],
    output:
        page=report(PAGE, category="Studies"),
        tables=expand(
            f"{RESULTS}/studies/{{study}}/table.{{form}}",
            study=[study.name for study in run_studies(CONFIG)],
            form=["md", "tex", "csv", "html"],
        ),
    params:
        code=code_hash("report"),
        studies=[study_path(name).read_text(encoding="utf-8") for name in CONFIG.studies],
        config=CONFIG_FILE,
    log:
        f"{LOGS}/report.log",
    benchmark:
        f"{BENCHMARKS}/report.tsv"
    resources:
        mem_mb=2000,
    shell:
        "ditbench report --config {params.config} 2> >(tee {log} >&2)"
