# Real images that generated ones are compared with.


rule references:
    output:
        record=REFERENCES_RECORD,
    params:
        code=code_of_world("references") if isinstance(CONFIG.references, int) else code_hash("reference_set"),
        source=reference_source,
    log:
        f"{LOGS}/references/{{world}}.log",
    benchmark:
        f"{BENCHMARKS}/references/{{world}}.tsv"
    resources:
        mem_mb=1000,
    shell:
        "ditbench references --world {wildcards.world} {params.source} --out {output.record} "
        "--code {params.code} 2> >(tee {log} >&2)"


# Features of the references in a network, for all judges that read them.
rule features:
    input:
        references=REFERENCES_RECORD,
    output:
        FEATURES_RECORD,
    params:
        code=code_hash("features"),
        source=reference_words,
        judge_weights=judge_weights_option,
        device=CONFIG.device,
    log:
        f"{LOGS}/references/{{world}}.{{network}}.log",
    benchmark:
        f"{BENCHMARKS}/references/{{world}}.{{network}}.tsv"
    threads: 1
    resources:
        mem_mb=more_each_time(4000),
        gpu=GPUS,
    retries: 1  # see more_each_time
    shell:
        "OMP_NUM_THREADS={threads} ditbench features --references {input.references} --network {wildcards.network} "
        "{params.source} {params.judge_weights} --device {params.device} --out {output} --code {params.code} "
        "2> >(tee {log} >&2)"
