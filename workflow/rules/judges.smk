# All judges of a cell in one job: the images are read and the libraries imported once.


rule scores:
    input:
        spec=f"{CELL}/spec.json",
        shards=shards_of("{arm}"),
        full=full_shards,
        captions=CAPTIONS_RECORD,
        references=reference_record,
        features=reference_features,
    output:
        f"{CELL}/scores.json",
    params:
        code=code_of_world("score"),
        spec=spec_hash,
        full=lambda wildcards, input: f"--full-shards {' '.join(input.full)}" if input.full else "",
        references=lambda wildcards, input: f"--references {input.references}" if input.references else "",
        features=lambda wildcards, input: f"--features {input.features}" if input.features else "",
        statistics=reference_statistics,
        judges=f"--judges {' '.join(CONFIG.judges)}" if CONFIG.judges else "",
        judge_weights=judge_weights_option,
        device=CONFIG.device,
    log:
        f"{LOGS}/scores/{{world}}.{{arm}}.seed{{seed}}.log",
    benchmark:
        f"{BENCHMARKS}/scores/{{world}}.{{arm}}.seed{{seed}}.tsv"
    threads: 1
    resources:
        mem_mb=more_each_time(4000),
        gpu=GPUS,
    retries: 1  # see more_each_time
    shell:
        "OMP_NUM_THREADS={threads} ditbench score --spec {input.spec} --shards {input.shards} {params.full} "
        "--captions {input.captions} {params.references} {params.features} {params.statistics} {params.judges} {params.judge_weights} --device {params.device} "
        "--out {output} --code {params.code} "
        "2> >(tee {log} >&2)"
