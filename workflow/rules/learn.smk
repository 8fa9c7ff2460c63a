# What methods learn before they sample: once for an arm, whatever its seeds, from captions that no cell draws.


rule training_captions:
    output:
        TRAINING_RECORD,
    params:
        code=code_of_world("caption_files" if CONFIG.captions.train else "captions"),
        source=learning_source,
        file_hash=str(TRAINING_HASH),
        name=LEARNING,
        number=CONFIG.learning.captions,
    log:
        f"{LOGS}/captions/{{world}}.training.log",
    benchmark:
        f"{BENCHMARKS}/captions/{{world}}.training.tsv"
    priority: FIRST
    resources:
        mem_mb=500,
    shell:
        "ditbench captions --world {wildcards.world} --name {params.name} --count {params.number} {params.source} "
        "--out {output} --code {params.code} 2> >(tee {log} >&2)"


rule learn:
    input:
        captions=training_record("captions"),
        embeddings=training_record("embeddings"),
        plan=plan_file_of_arm,
        references=fitness_references,
        features=fitness_features,
    output:
        LEARNED_RECORD,
    params:
        code=code_of_arm("learn"),
        spec=spec_json_of_arm,
        arm=arm_of,
        batch=CONFIG.batch,
        weights=weights_option,
        judge_weights=judge_weights_option,
        pairs=pairs_option,
        real=real_images_option,
        training=fitted_on,
        device=CONFIG.device,
    log:
        f"{LOGS}/learn/{{world}}.{{arm}}.log",
    benchmark:
        f"{BENCHMARKS}/learn/{{world}}.{{arm}}.tsv"
    threads: CONFIG.learning.threads
    priority: FIRST
    resources:
        mem_mb=more_each_time(6000),
        runtime=more_each_time(1440),
        gpu=GPUS,
    retries: 1  # see more_each_time
    shell:
        "OMP_NUM_THREADS={threads} ditbench learn --spec {params.spec:q} {params.training} "
        "--batch {params.batch} --device {params.device} {params.weights} "
        "{params.judge_weights} {params.pairs} {params.real} "
        "--out {output} --code {params.code} 2> >(tee {log} >&2)"
