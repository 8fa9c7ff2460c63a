# How the shipped weights of the embedded world were made: `snakemake assets`, hours on two cores, resumable.
# What it makes lies under results/assets/scenes; a person who wants to ship it copies it to assets/scenes.

ASSETS = f"{RESULTS}/assets"
WORK = f"{RESULTS}/assets/work"
RECIPE = "src/ditbench/worlds/scenes"


rule backbone:
    input:
        expand(
            f"{RECIPE}/{{name}}.py",
            name=["grammar", "renderer", "settings", "model", "recipe/lesson", "recipe/backbone", "recipe/export"],
        ),
    output:
        expand(
            f"{ASSETS}/scenes/{{name}}", name=["transformer.safetensors", "text_encoder.safetensors", "backbone.json"]
        ),
    params:
        device=CONFIG.device,
        place=lambda wildcards, output: Path(output[0]).parent,
        work=WORK,
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


rule judge_weights:
    input:
        expand(
            f"{RECIPE}/{{name}}.py",
            name=[
                "grammar",
                "renderer",
                *(f"judges/{name}" for name in ["dual", "preference", "reader", "trunk"]),
                *(f"recipe/{name}" for name in ["changes", "defects", "dual_task", "judges", "preference_task"]),
                *(f"recipe/{name}" for name in ["reader_task", "training"]),
            ],
        ),
    output:
        expand(
            f"{ASSETS}/scenes/{{name}}",
            name=["reader.safetensors", "dual.safetensors", "preference.safetensors", "judges.json"],
        ),
    params:
        device=CONFIG.device,
        place=lambda wildcards, output: Path(output[0]).parent,
        work=WORK,
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


rule assets:
    input:
        rules.backbone.output,
        rules.judge_weights.output,
