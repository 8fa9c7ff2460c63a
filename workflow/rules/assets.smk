# How the shipped weights of the embedded world were made: `snakemake assets`, hours on two cores, resumable.
# What it makes lies under results/assets/scenes; a person who wants to ship it copies it to assets/scenes.

QUALITY = {"quality": "configs/scenes-quality.yaml", "mmdit-quality": "configs/mmdit-quality.yaml"}
# Of which arms what was learned is shipped, by the configuration that learns it.
LEARNED = {
    name: [f"{ASSETS}/{name}/learned/scenes/{arm}/learned.json" for arm in arms]
    for name, arms in {"diffsparse": ["diffsparse-43", "diffsparse-54"], "diffcr": ["diffcr-lt-30", "mod-30"]}.items()
}


rule backbone:
    output:
        expand(
            f"{ASSETS}/scenes/{{name}}", name=["transformer.safetensors", "text_encoder.safetensors", "backbone.json"]
        ),
    params:
        code=code_hash("backbone"),
        device=CONFIG.device,
        place=lambda wildcards, output: Path(output[0]).parent,
        work=checkpoints("backbone"),
    log:
        f"{LOGS}/assets/backbone.log",
    benchmark:
        f"{BENCHMARKS}/assets/backbone.tsv"
    threads: workflow.cores
    resources:
        mem_mb=8000,
        gpu=GPUS,
    retries: 2
    shell:
        "OMP_NUM_THREADS={threads} ditbench assets train-backbone --folder {params.place} --work {params.work} "
        "--device {params.device} 2>&1 | tee {log} >&2"


rule mmdit:
    input:
        f"{ASSETS}/scenes/text_encoder.safetensors",
    output:
        expand(f"{ASSETS}/scenes/{{name}}", name=["mmdit.safetensors", "mmdit.json"]),
    params:
        code=code_hash("mmdit"),
        device=CONFIG.device,
        place=lambda wildcards, output: Path(output[0]).parent,
        work=checkpoints("mmdit"),
    log:
        f"{LOGS}/assets/mmdit.log",
    benchmark:
        f"{BENCHMARKS}/assets/mmdit.tsv"
    threads: workflow.cores
    resources:
        mem_mb=8000,
        gpu=GPUS,
    retries: 2
    shell:
        "OMP_NUM_THREADS={threads} ditbench assets train-mmdit --folder {params.place} --work {params.work} "
        "--device {params.device} 2>&1 | tee {log} >&2"


rule judge_weights:
    output:
        expand(
            f"{ASSETS}/scenes/{{name}}",
            name=["reader.safetensors", "dual.safetensors", "preference.safetensors", "judges.json"],
        ),
    params:
        code=code_hash("judge_weights"),
        device=CONFIG.device,
        place=lambda wildcards, output: Path(output[0]).parent,
        work=checkpoints("judge_weights"),
    log:
        f"{LOGS}/assets/judges.log",
    benchmark:
        f"{BENCHMARKS}/assets/judges.tsv"
    threads: workflow.cores
    resources:
        mem_mb=8000,
        gpu=GPUS,
    retries: 2
    shell:
        "OMP_NUM_THREADS={threads} ditbench assets train-judges --folder {params.place} --work {params.work} "
        "--device {params.device} 2>&1 | tee {log} >&2"


rule model_card:
    # The quality of these weights is that of studies drawn with them: runs of their own, in folders of their own,
    # because this one was planned with the weights that are shipped.
    input:
        weights=rules.backbone.output,
        mmdit=rules.mmdit.output,
        judges=rules.judge_weights.output,
        configs=QUALITY.values(),
    output:
        expand(
            f"{ASSETS}/scenes/{{name}}",
            name=["README.md", "quality.json", "samples.png", "quality-mmdit.json", "samples-mmdit.png"],
        ),
    params:
        code=code_hash("model_card"),
        device=CONFIG.device,
        place=lambda wildcards, output: Path(output[0]).parent,
        runs=" && ".join(
            f"snakemake --nolock --cores {workflow.cores} --configfile {config} "
            f"--config results={ASSETS}/{name} device={CONFIG.device}"
            for name, config in QUALITY.items()
        ),
        results=[f"{ASSETS}/{name}" for name in QUALITY],
    log:
        f"{LOGS}/assets/model_card.log",
    benchmark:
        f"{BENCHMARKS}/assets/model_card.tsv"
    threads: workflow.cores
    resources:
        mem_mb=8000,
        gpu=GPUS,
    retries: 2
    shell:
        "(export DITBENCH_SCENES_ASSETS=$(cd {params.place}; pwd); {params.runs} && "
        "ditbench assets model-card --folder {params.place} --config {input.configs} "
        "--results {params.results}) 2>&1 | tee {log} >&2"


rule shipped_learned:
    # Plans and routers, from runs of their own; a person who wants to ship them copies them to assets/scenes/learned.
    output:
        expand(
            f"{ASSETS}/scenes/learned/{{name}}/learned.json",
            name=["diffsparse-43", "diffsparse-54", "diffcr-lt-30", "mod-30"],
        ),
    params:
        place=lambda wildcards, output: Path(output[0]).parents[2],
        records=[record for records in LEARNED.values() for record in records],
        runs=" && ".join(
            f"snakemake --nolock --cores {workflow.cores} --configfile configs/scenes-{name}.yaml "
            f"--config results={ASSETS}/{name} device={CONFIG.device} -- {' '.join(records)}"
            for name, records in LEARNED.items()
        ),
    log:
        f"{LOGS}/assets/learned.log",
    benchmark:
        f"{BENCHMARKS}/assets/learned.tsv"
    threads: workflow.cores
    resources:
        mem_mb=8000,
        gpu=GPUS,
    retries: 2
    shell:
        "({params.runs} && ditbench assets ship-learned {params.records} --folder {params.place}) 2>&1 | tee {log} >&2"


rule assets:
    input:
        rules.backbone.output,
        rules.mmdit.output,
        rules.judge_weights.output,
        rules.model_card.output,
