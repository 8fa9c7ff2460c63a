# The MACs that papers print, counted again: `snakemake macs_audit`. It needs no weights and no cell.

AUDIT = f"{RESULTS}/studies/macs_audit"


rule macs_audit:
    input:
        study=study_path("macs_audit"),
    output:
        record=f"{AUDIT}/audit.json",
        tables=expand(f"{AUDIT}/table.{{form}}", form=["md", "tex", "csv", "html"]),
        page=report(f"{AUDIT}/index.html", category="Studies"),
    params:
        code=code_hash("audit"),
        folder=lambda wildcards, output: Path(output.record).parent,
    log:
        f"{LOGS}/macs_audit.log",
    benchmark:
        f"{BENCHMARKS}/macs_audit.tsv"
    resources:
        mem_mb=3000,
    shell:
        "OMP_NUM_THREADS={threads} ditbench audit --study {input.study} --out {params.folder} --code {params.code} "
        "2>&1 | tee {log} >&2"
