# Real images that generated ones are compared with.


rule references:
    output:
        record=REFERENCES_RECORD,
    params:
        code=code_of_world("references"),
        number=CONFIG.references,
    log:
        f"{LOGS}/references/{{world}}.log",
    benchmark:
        f"{BENCHMARKS}/references/{{world}}.tsv"
    resources:
        mem_mb=1000,
    shell:
        "ditbench references --world {wildcards.world} --count {params.number} --out {output.record} "
        "--code {params.code} 2> >(tee {log} >&2)"
