# Text embeddings, once per world and caption set.


rule embeddings:
    input:
        captions=f"{RESULTS}/captions/{{world}}/{{captions}}.json",
    output:
        f"{RESULTS}/embeddings/{{world}}/{{captions}}.json",
    params:
        code=code_of_world("embed"),
        weights=weights_option,
        identity=lambda wildcards: get_world(wildcards.world).weights_identity(CONFIG.weights.get(wildcards.world)),
        device=CONFIG.device,
    log:
        f"{LOGS}/embeddings/{{world}}.{{captions}}.log",
    benchmark:
        f"{BENCHMARKS}/embeddings/{{world}}.{{captions}}.tsv"
    threads: 1
    priority: FIRST
    resources:
        mem_mb=more_each_time(3000),
        gpu=GPUS,
    retries: 1  # see more_each_time
    shell:
        "OMP_NUM_THREADS={threads} ditbench embed --world {wildcards.world} --captions {input.captions} "
        "--device {params.device} {params.weights} --out {output} --code {params.code} 2> >(tee {log} >&2)"
