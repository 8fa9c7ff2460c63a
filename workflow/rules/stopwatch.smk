# Speed. The job takes every core, so that nothing of this run works beside it.


rule latency:
    input:
        spec=f"{CELL}/spec.json",
        baseline=lambda wildcards: f"{RESULTS}/cells/{wildcards.world}/{BASELINE}/seed{wildcards.seed}/spec.json",
        captions=CAPTIONS_RECORD,
        embeddings=lambda wildcards: [] if spec_of(wildcards).weights == RANDOM else EMBEDDINGS_RECORD,
    output:
        f"{CELL}/latency.json",
    params:
        code=code_of_cell("time"),
        spec=spec_hash,
        rounds=CONFIG.stopwatch.rounds,
        batches=timed_batches(),
        modes=" ".join(CONFIG.stopwatch.modes),
        contended=CONFIG.stopwatch.contended,
        embeddings=lambda wildcards, input: f"--embeddings {input.embeddings}" if input.embeddings else "",
        weights=weights_option,
        device=CONFIG.device,
    log:
        f"{LOGS}/latency/{{world}}.{{arm}}.seed{{seed}}.log",
    benchmark:
        f"{BENCHMARKS}/latency/{{world}}.{{arm}}.seed{{seed}}.tsv"
    threads: workflow.cores
    priority: -1  # images are worth looking at first
    resources:
        mem_mb=more_each_time(4000),
        gpu=GPUS,
    retries: 1  # see more_each_time
    shell:
        "OMP_NUM_THREADS={threads} ditbench time --spec {input.spec} --baseline {input.baseline} "
        "--captions {input.captions} {params.embeddings} --rounds {params.rounds} --batch {params.batches} --modes {params.modes} "
        "--contended {params.contended} --device {params.device} {params.weights} --out {output} --code {params.code} 2> >(tee {log} >&2)"
