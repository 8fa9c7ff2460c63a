# One rule writes to MLflow; everything else writes records.


rule publish:
    input:
        PAGE,  # made anew with any record, whose names would be twice as many edges of a large graph
        [LOST_STORE] if Path(LOST_STORE).exists() else [],
    output:
        PUBLISHED,
    params:
        code=code_hash("publish"),
        config=CONFIG_FILE,
    log:
        f"{LOGS}/publish.log",
    benchmark:
        f"{BENCHMARKS}/publish.tsv"
    resources:
        mem_mb=2000,
    retries: 2
    shell:
        "ditbench publish --config {params.config} --out {output} 2> >(tee {log} >&2)"
