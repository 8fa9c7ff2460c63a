# ditbench: the stages of the experiment are the files of workflow/rules.


import atexit
import gc

from snakemake.utils import min_version

min_version("9.17")  # the first whose priorities can be functions


# Of the tens of thousands of jobs that a campaign is planned in nothing is garbage: looking for it takes a third of the
# time, while they are made and again when Python ends.
gc.disable()
atexit.register(gc.freeze)


configfile: "config.yaml"


container: "docker://ditbench:0.1.0"  # made by envs/Containerfile; used with --sdm apptainer only


include: "workflow/rules/common.smk"
include: "workflow/rules/captions.smk"
include: "workflow/rules/references.smk"
include: "workflow/rules/embeddings.smk"
include: "workflow/rules/learn.smk"
include: "workflow/rules/images.smk"
include: "workflow/rules/cost.smk"
include: "workflow/rules/judges.smk"
include: "workflow/rules/stopwatch.smk"
include: "workflow/rules/study.smk"
include: "workflow/rules/publish.smk"
include: "workflow/rules/audit.smk"
include: "workflow/rules/assets.smk"


# Made where the run was started: MLflow's database is no file to write to from a node.
localrules:
    all,
    report,
    publish,


rule all:
    default_target: True
    input:
        PAGE,
        PUBLISHED,
        overlap_records(),
        # Named here too: a record that is missing behind a finished page would not be made anew, and a sentence that
        # says to delete a damaged one and to run again would lead nowhere. Where a campaign is run in batches of the
        # report's records, they are asked for by the report alone.
        unless_in_batches(cell_records("spec", "scores", "cost", "latency")),
        unless_in_batches(lost_shards()),
        unless_in_batches(lost_learning()),


onstart:
    gc.freeze()  # what is planned stays; what a run of days leaves behind is looked for again
    gc.enable()
    claim_results()
    cancel_each_job_once()
    if asks_for_cells():
        start_warm_process()
        shell("ditbench plan --config {CONFIG_FILE}")


onsuccess:
    if asks_for_cells():
        note_end()
        shell("ditbench spent --config {CONFIG_FILE} || true")  # a run that made no record has none


# A failed arm stays visible: what is there is rendered and published, the failed cells with their reasons.
onerror:
    take_jobs_back()
    if asks_for_cells():
        note_end()
        shell("ditbench report --config {CONFIG_FILE} || true")
        outdate_page()
        shell("ditbench publish --config {CONFIG_FILE} --out {PUBLISHED_SO_FAR} || true")
