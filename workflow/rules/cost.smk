# MACs, billed from what the shards' traces say was executed.


rule cost:
    input:
        spec=f"{CELL}/spec.json",
        shards=ran_records,
    output:
        f"{CELL}/cost.json",
    params:
        code=code_of_cell("cost"),
        spec=spec_hash,
    log:
        f"{LOGS}/cost/{{world}}.{{arm}}.seed{{seed}}.log",
    benchmark:
        f"{BENCHMARKS}/cost/{{world}}.{{arm}}.seed{{seed}}.tsv"
    resources:
        mem_mb=500,
    shell:
        "ditbench cost --spec {input.spec} --shards {input.shards} --out {output} --code {params.code} "
        "2> >(tee {log} >&2)"
