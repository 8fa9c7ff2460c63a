# A cell's spec and plan, and its images in shards.


rule spec:
    input:
        learned=learned_record,
        lent=lent_record,
    output:
        f"{CELL}/spec.json",
    params:
        code=code_of_cell("spec"),
        spec=spec_json,
        learned=lambda wildcards, input: f"--learned {input.learned}" if input.learned else "",
        lent=lambda wildcards, input: f"--lent {input.lent}" if input.lent else "",
    log:
        f"{LOGS}/spec/{{world}}.{{arm}}.seed{{seed}}.log",
    benchmark:
        f"{BENCHMARKS}/spec/{{world}}.{{arm}}.seed{{seed}}.tsv"
    priority: longest_first
    resources:
        mem_mb=500,
    shell:
        "ditbench spec --spec {params.spec:q} {params.learned} {params.lent} --out {output} --code {params.code} 2> >(tee {log} >&2)"


rule images:
    input:
        spec=f"{CELL}/spec.json",
        embeddings=EMBEDDINGS_RECORD,  # made of the captions, which so are no input of every shard besides
    output:
        f"{CELL}/shards/{{first}}-{{last}}.json",
    params:
        code=code_of_cell("generate"),
        spec=spec_hash,
        captions=CAPTIONS_RECORD,
        batch=CONFIG.batch,
        weights=weights_option,
        device=CONFIG.device,
    log:
        f"{LOGS}/images/{{world}}.{{arm}}.seed{{seed}}.{{first}}-{{last}}.log",
    threads: 1
    priority: longest_first
    resources:
        mem_mb=more_each_time(4000),
        gpu=GPUS,
    retries: 1  # see more_each_time
    shell:
        "OMP_NUM_THREADS={threads} ditbench generate --spec {input.spec} --captions {params.captions} "
        "--embeddings {input.embeddings} --first {wildcards.first} --last {wildcards.last} --batch {params.batch} "
        "--device {params.device} {params.weights} --out {output} --code {params.code} 2> >(tee {log} >&2)"
