# Captions of a run, drawn from the world's grammar or read from a file.


rule captions:
    output:
        CAPTIONS_RECORD,
    params:
        code=code_of_world("captions"),
        source=captions_source(),
        file_hash=str(CAPTIONS_HASH),
        name=CAPTIONS,
        number=CONFIG.images,
    log:
        f"{LOGS}/captions/{{world}}.log",
    benchmark:
        f"{BENCHMARKS}/captions/{{world}}.tsv"
    priority: FIRST
    resources:
        mem_mb=500,
    shell:
        "ditbench captions --world {wildcards.world} --name {params.name} --count {params.number} {params.source} "
        "--out {output} --code {params.code} 2> >(tee {log} >&2)"
