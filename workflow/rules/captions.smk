# Captions of a run, drawn from the world's grammar or read from a file, and whether something was fitted on them.


rule captions:
    output:
        CAPTIONS_RECORD,
    params:
        code=code_of_world("caption_files" if CONFIG.captions.file else "captions"),
        source=captions_source,
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


# A run whose captions were trained with, and may not be, has not started: `ditbench plan` refused it.
rule overlap:
    input:
        captions=CAPTIONS_RECORD,
    output:
        OVERLAP_RECORD,
    params:
        code=code_of_world("overlap"),
        source=training_source,
        file_hash=str(TRAINING_HASH),
        rule=CONFIG.captions.overlap,
    log:
        f"{LOGS}/overlap/{{world}}.log",
    benchmark:
        f"{BENCHMARKS}/overlap/{{world}}.tsv"
    priority: FIRST
    resources:
        mem_mb=2000,
    shell:
        "ditbench overlap --captions {input.captions} {params.source} --rule {params.rule} "
        "--out {output} --code {params.code} 2> >(tee {log} >&2)"
