# What all rules share: the checked configuration, its cells, and where things lie. Nothing heavy is imported here.

import json
import os
import shlex
import shutil
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import asdict, replace
from functools import cache
from pathlib import Path

from ditbench.caption_files.options import learning_words, training_words, words_of
from ditbench.cells import (
    BASELINE,
    caption_set,
    cell_table,
    learning_set,
    reference_set,
    shard_ranges,
    training_captions,
)
from ditbench.codehash import code_hash
from ditbench.config import check_config, keep_settings, origins_of, retyped
from ditbench.elsewhere import finished_elsewhere, packs_of
from ditbench.faults import Fault, tell
from ditbench.forecast import effort
from ditbench.judges import default_judges, networks_of
from ditbench.judges.registry import judge_identities, need_judges
from ditbench.learn.job import arm_hash
from ditbench.methods import get_method
from ditbench.patience import VARIABLE as PATIENCE
from ditbench.report.tracking.store import missing_store
from ditbench.runs import begin_run, check_version, end_run, taken_up
from ditbench.learn.sources import KNOBS as SOURCES, place_of
from ditbench.storage import claim, clear_partials
from ditbench.study import name_of, study_path
from ditbench.study_figures import LOOKED as LOOKED_KINDS
from ditbench.sweeps import run_studies
from ditbench.warm import SOCKET, new_place, supported
from ditbench.worlds import RANDOM, get_world

try:
    # Nested values of --config arrive as text.
    given = {name: retyped(config[name]) for name in workflow.config_settings.config}
    # Files of --configfile stand first in Snakemake's list, and have the last word.
    own = len(workflow.overwrite_configfiles)
    origins = origins_of([*workflow.configfiles[own:], *workflow.configfiles[:own]], given)
    CONFIG = check_config({**config, **given}, origins=origins)
    SPECS = {spec.name: spec for spec in cell_table(CONFIG)}
    CAPTIONS, CAPTIONS_HASH = caption_set(CONFIG)
    TRAINING_HASH = training_captions(CONFIG)
    LEARNING = learning_set(CONFIG)
    REFERENCES = reference_set(CONFIG)
    check_version(CONFIG.results)  # before anything is written there
    PACKS = packs_of(CONFIG.elsewhere, CONFIG.results)
    CONFIG_FILE = keep_settings(CONFIG)  # as they are after --config and --configfile
    WORLDS = dict.fromkeys(spec.world for spec in SPECS.values())
    JUDGES = CONFIG.judges or [name for world in WORLDS for name in default_judges(world, CONFIG.judge_weights)]
    JUDGES_KNOWN = judge_identities(JUDGES, CONFIG.judge_weights)
except Fault as fault:
    raise WorkflowError(str(fault))

# What is asked of this run itself. Of the others the full arm's images are drawn where an arm of this run needs them.
TAKEN = finished_elsewhere(PACKS, list(SPECS.values()))
OWN = [spec for spec in SPECS.values() if spec.hash not in TAKEN]
RESULTS = CONFIG.results
LOGS = f"{RESULTS}/logs"
BENCHMARKS = f"{RESULTS}/benchmarks"
CELL = f"{RESULTS}/cells/{{world}}/{{arm}}/seed{{seed}}"
CAPTIONS_RECORD = f"{RESULTS}/captions/{{world}}/{CAPTIONS}.json"
TRAINING_RECORD = f"{RESULTS}/captions/{{world}}/{LEARNING}.json"
LEARNED_RECORD = f"{RESULTS}/learned/{{world}}/{{arm}}/learned.json"
# With which training captions a set was compared is no part of the set: comparing a finished run's makes nothing anew.
OVERLAP_RECORD = f"{RESULTS}/overlap/{{world}}/{CAPTIONS}-{(TRAINING_HASH or '')[:8]}.json"
EMBEDDINGS_RECORD = f"{RESULTS}/embeddings/{{world}}/{CAPTIONS}.json"
REFERENCES_RECORD = f"{RESULTS}/references/{{world}}/{REFERENCES}.json"
FEATURES_RECORD = f"{RESULTS}/references/{{world}}/{REFERENCES}/{{network}}.json"
SHARDS = [f"{first:05d}-{last:05d}" for first, last in shard_ranges(CONFIG)]
PAGE = f"{RESULTS}/report/index.html"
ASSETS = f"{RESULTS}/assets"
FAILED_RUN = f"{RESULTS}/report/failed-run.txt"
LOST_STORE = f"{RESULTS}/report/lost-store.txt"
PUBLISHED = f"{RESULTS}/published.json"
PUBLISHED_SO_FAR = f"{RESULTS}/published-so-far.json"
EFFORTS = {name: effort(spec) for name, spec in SPECS.items()}
FIRST = 1 + max(EFFORTS.values())  # the priority of what all images wait for
GPUS = 0 if CONFIG.device == "cpu" else 1

# Every job asks for the hash of its code, and a campaign has tens of thousands of jobs: files are read once.
code_hash = cache(code_hash)

# Commands are found even where the environment of this Snakemake was not activated. A prefix of one's own takes the
# place of Snakemake's strict mode, so it says that too.
shell.prefix(f'set -euo pipefail; PATH="$PATH":{shlex.quote(str(Path(sys.executable).parent))}; ')


if CONFIG.patience:
    os.environ[PATIENCE] = str(CONFIG.patience)  # not in the words of jobs: another patience makes nothing anew


# A note that MLflow's store is gone though it was published to: an input of the rule that publishes, newer than its
# output once, so that the store is made again from the records.
if lost := missing_store(CONFIG, PUBLISHED):
    with suppress(OSError):
        Path(LOST_STORE).parent.mkdir(parents=True, exist_ok=True)
        Path(LOST_STORE).write_text(f"{lost}\n", encoding="utf-8")


wildcard_constraints:
    world="[a-z0-9][a-z0-9._-]*",
    arm="[a-z0-9][a-z0-9._-]*",
    seed="[0-9]+",
    first="[0-9]+",
    last="[0-9]+",


CLOCKS = None  # as they stood when this run began


def claim_results():
    """Lets one run at a time write to the results folder; the claim ends with this process.

    What a run that was killed left half-written goes: nobody else can be writing.
    """
    global CLAIM, CLOCKS
    try:
        CLAIM = claim(RESULTS)
        check_version(RESULTS)  # once more: another run may have begun since
        cleared = clear_partials(RESULTS)
        if asks_for_cells():
            for sentence in taken_up(RESULTS, cleared):
                tell(sentence)
            if lost:
                tell(
                    f"MLflow's store {lost} is gone, though runs were published to it: it is made again from the records"
                )
            if any(map(draws_images, OWN)):
                need_judges(JUDGES, CONFIG.judge_weights)
            CLOCKS = begin_run(
                RESULTS, CONFIG_FILE, workflow.cores, workflow.global_resources.get("gpu", 1) if GPUS else 0
            )
    except Fault as fault:
        raise WorkflowError(str(fault))


def unless_in_batches(files):
    """Files that are asked for where the records of the report are not gone through some at a time (`--batch`)."""
    return lambda wildcards: [] if workflow.dag_settings and workflow.dag_settings.batch else files


def asks_for_cells():
    """Whether a run is asked for more than the audit and the shipped weights, which are no part of any study."""
    targets = set(workflow.dag_settings.targets)
    return not targets or bool(
        targets - {"macs_audit", "backbone", "mmdit", "judge_weights", "model_card", "shipped_learned", "assets"}
    )


def start_warm_process():
    """Loads the heavy libraries once for all jobs; jobs without it load them themselves.

    Not for GPUs: a process that was forked cannot be sure to have one, and jobs there are long. Nor for jobs of other
    machines or of environments of their own, whose libraries are not the ones loaded here.
    """
    elsewhere = workflow.deployment_settings.deployment_method or not workflow.local_exec
    if GPUS or elsewhere or not supported():
        return
    place = new_place()
    os.environ[SOCKET] = str(place)
    program = shutil.which("ditbench") or str(Path(sys.executable).with_name("ditbench"))
    log = Path(LOGS) / "warm.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("w") as file:
        subprocess.Popen(
            [program, "warm", "--socket", str(place), "--run", str(os.getpid())],
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=file,
            env={**os.environ, "OMP_NUM_THREADS": "1"},  # what libraries read once, when they are loaded
        )


def cancel_each_job_once():
    """Lets the run's end cancel what Snakemake has not, without a word of its scheduler about jobs that are gone."""
    executor = executor_of_cluster()
    if executor is not None:
        cancel, cancelled = executor.cancel_jobs, []

        def cancel_others(jobs):
            others = [job for job in jobs if job not in cancelled]
            cancelled.extend(others)
            if others:
                cancel(others)

        executor.cancel_jobs = cancel_others


def take_jobs_back():
    """Cancels the jobs that Snakemake was just asking its scheduler about when the run was stopped.

    Until it has the answer it counts none of them as active, so that it cancels none.
    """
    if (executor := executor_of_cluster()) is not None:
        executor.cancel_jobs(executor.active_jobs)


def executor_of_cluster():
    """What sends jobs to a scheduler; None where they are run here."""
    executor = getattr(workflow.scheduler, "_executor", None)
    return executor if hasattr(executor, "active_jobs") else None


def note_end():
    """Notes when the run ended; where even that can't be written, what else the end of a run does goes on."""
    try:
        if CLOCKS is not None and (said := end_run(RESULTS, CLOCKS)):
            tell(said)
    except Fault as fault:
        tell(str(fault))


def outdate_page():
    """Notes that the page was written outside its rule, so that the next run writes it by its rule.

    Else a page that shows a failed arm would stay when the arm is given up: it is newer than all records, and for
    equal inputs Snakemake does not look at the age of its outputs. The note is an input of the rule from then on.
    """
    with suppress(OSError):  # a full disk: the run has failed for a better reason
        Path(FAILED_RUN).write_text(f"{time.time()}\n", encoding="utf-8")


def more_each_time(amount):
    """The memory or time that a stage on images may take, more at the second attempt.

    Those stages are tried twice: one that was killed for memory, found its GPU full or its file system gone for a
    moment may pass. What fails by itself fails the same way again, soon, and its reason stays noted beside the cell.
    """
    return lambda wildcards, attempt: amount * attempt


def spec_of(wildcards):
    """The spec of a cell."""
    return SPECS[f"{wildcards.world}/{wildcards.arm}/seed{wildcards.seed}"]


def longest_first(wildcards):
    """The priority of a cell's images: the slowest arms start first, so that none is left to run alone at the end.

    The other arms' scores need the full arm's images too. What is not an image has priority 0, the stopwatch less.
    """
    return EFFORTS[spec_of(wildcards).name]


def spec_json(wildcards):
    """The spec of a cell as the command line takes it."""
    return json.dumps(asdict(spec_of(wildcards)), sort_keys=True)


def specs_of_arm(wildcards):
    """The specs of an arm, one for each seed."""
    return [spec for spec in SPECS.values() if (spec.world, spec.arm) == (wildcards.world, wildcards.arm)]


def spec_json_of_arm(wildcards):
    """The spec of an arm's first cell, without what is that cell's own: what the arm learns, all of them share."""
    first = specs_of_arm(wildcards)[0]
    spec = replace(first, seed=0, images=1, captions=first.learning, captions_sha256=None)
    return json.dumps(asdict(spec), sort_keys=True)


def arm_of(wildcards):
    """What an arm is: a change of anything that learning hangs on reruns it."""
    return arm_hash(asdict(specs_of_arm(wildcards)[0]))


def plan_file_of_arm(wildcards):
    """The record of learning that an arm takes its plan or weights from; another arm's of this run, or one there is."""
    knobs = specs_of_arm(wildcards)[0].knobs
    named = next((knobs[name] for name in SOURCES if knobs.get(name)), None)
    return str(place_of(named, Path(LEARNED_RECORD.format(**wildcards)).parent)) if named else []


def training_record(folder):
    """A record of the training captions, or of their embeddings, for an arm that is fitted on them."""
    return lambda wildcards: (
        f"{RESULTS}/{folder}/{wildcards.world}/{LEARNING}.json" if is_fitted_on_captions(wildcards) else []
    )


def is_fitted_on_captions(wildcards):
    """Whether an arm learns from captions; what is fine-tuned learns from pairs."""
    return specs_of_arm(wildcards)[0].learning == LEARNING


def fitted_on(wildcards, input):
    """The training captions and their embeddings as the command line takes them."""
    return f"--captions {input.captions} --embeddings {input.embeddings}" if input.captions else ""


def code_of_arm(stage):
    """The hash of the code that a stage runs for an arm."""
    return lambda wildcards: code_hash(stage, wildcards.world, specs_of_arm(wildcards)[0].method)


def learned_record(wildcards):
    """The record of what a cell's method learned, where it learns something."""
    return LEARNED_RECORD.format(**wildcards) if spec_of(wildcards).learning else []


def lent_record(wildcards):
    """The record of the arm on whose weights a cell runs, where it runs on an arm's."""
    name = spec_of(wildcards).weights_of
    return LEARNED_RECORD.format(world=wildcards.world, arm=name.rpartition("@")[0]) if name else []


def spec_hash(wildcards):
    """What a cell is: a change of any of its settings reruns it."""
    return spec_of(wildcards).hash


def code_of_cell(stage):
    """The hash of the code that a stage runs for one cell: its own method's file and no other's."""
    return lambda wildcards: code_hash(stage, wildcards.world, spec_of(wildcards).method)


def code_of_world(stage):
    """The hash of the code that a stage runs in a world."""
    return lambda wildcards: code_hash(stage, wildcards.world)


def checkpoints(stage):
    """Where training goes on: a folder for each recipe, since one's checkpoints are no start for another."""
    return f"{ASSETS}/checkpoints/{code_hash(stage)}"


# Words of users reach rules by functions: in plain texts Snakemake would take what stands in braces for its own words.


def captions_source(wildcards=None):
    """Where captions come from, as the command line takes it."""
    return shlex.join(words_of(CONFIG.captions))


def training_source(wildcards=None):
    """The training captions, as the command line takes them."""
    return shlex.join(training_words(CONFIG.captions))


def learning_source(wildcards=None):
    """Where training captions come from, as `ditbench captions` takes it."""
    return shlex.join(learning_words(CONFIG))


def texts_of_studies(wildcards=None):
    """What the studies say: a change of any word in them makes the report anew."""
    return [study_path(name).read_text(encoding="utf-8") for name in CONFIG.studies]


def overlap_records():
    """The comparisons with training captions, one in each world; none where the settings name no such captions."""
    return [OVERLAP_RECORD.format(world=world) for world in WORLDS if TRAINING_HASH]


def weights_option(wildcards):
    """Where a world's weights are, as the command line takes it; nothing for the world's own."""
    given = CONFIG.weights.get(wildcards.world)
    return f"--weights {shlex.quote(given)}" if given else ""


def pairs_option(wildcards=None):
    """Where the images with captions are that networks are fine-tuned on, as the command line takes it."""
    return f"--pairs {shlex.quote(CONFIG.learning.pairs)}" if CONFIG.learning.pairs else ""


def judge_weights_option(wildcards=None):
    """Where judges' weights are, and what tells them from other files, as the command line takes it.

    Other weights in the same place judge anew; a job that finds them changed since the run was planned refuses.
    """
    places = " ".join(shlex.quote(f"{key}={place}") for key, place in CONFIG.judge_weights.items())
    known = " ".join(f"{key}={mark}" for key, mark in JUDGES_KNOWN.items())
    return " ".join(
        [*([f"--judge-weights {places}"] if places else []), *([f"--known-weights {known}"] if known else [])]
    )


def reference_words(wildcards=None):
    """Where references come from, as `ditbench references` and `ditbench features` take it; nothing for a world's own."""
    if isinstance(CONFIG.references, int):
        return ""
    said = {f"--{name}": value for name, value in CONFIG.references.model_dump().items() if value is not None}
    return shlex.join(str(word) for pair in said.items() for word in pair)


def reference_source(wildcards):
    """The same for what draws or reads them: how many a world is to render, where it has its own."""
    return reference_words() or f"--count {CONFIG.references}"


def reference_statistics(wildcards=None):
    """The statistics that references are known by, as `ditbench score` takes them."""
    given = None if isinstance(CONFIG.references, int) else CONFIG.references.statistics
    return f"--statistics {shlex.quote(given)}" if given else ""


def references_known(wildcards):
    """What is known of a world's references: `images`, `moments`, or `none`."""
    if isinstance(CONFIG.references, int):
        return "images" if get_world(wildcards.world).has_references else "none"
    return "moments" if CONFIG.references.statistics else "images"


def reference_record(wildcards):
    """The record of the references of a world; none where there are none."""
    return [] if references_known(wildcards) == "none" else REFERENCES_RECORD.format(**wildcards)


def reference_features(wildcards):
    """The features of the references that the judges of a world read."""
    if references_known(wildcards) != "images":
        return []
    names = CONFIG.judges or default_judges(wildcards.world, CONFIG.judge_weights, references_known(wildcards))
    return [FEATURES_RECORD.format(world=wildcards.world, network=network) for network in networks_of(names)]


def compares_with_references(wildcards):
    """Whether an arm learns by a distance to real images that are not its world's own."""
    spec = specs_of_arm(wildcards)[0]
    return not isinstance(CONFIG.references, int) and get_method(spec.method, spec.knobs).compares_with_real_images


def fitness_references(wildcards):
    """The record of the references that an arm compares with while it learns."""
    return reference_record(wildcards) if compares_with_references(wildcards) else []


def fitness_features(wildcards):
    """The features of these references in the network that FID is of."""
    if not compares_with_references(wildcards) or references_known(wildcards) != "images":
        return []
    return [FEATURES_RECORD.format(world=wildcards.world, network="inception")]


def real_images_option(wildcards, input):
    """The same as `ditbench learn` takes them."""
    if not input.references:
        return ""
    return f"--references {input.references} --features {input.features} {reference_statistics()}"


def timed_batches():
    """How many images are timed at once, the main number first; no more than there are captions."""
    wanted = [CONFIG.stopwatch.batch, *CONFIG.stopwatch.batches]
    return " ".join(map(str, dict.fromkeys(min(batch, CONFIG.images) for batch in wanted)))


def draws_images(spec):
    """Whether a cell has images; one that has none is timed and billed only."""
    return get_world(spec.world).no_images(spec.weights) is None


# Studies with figures of what is seen while a network draws, in worlds that draw.
LOOKED = {
    study.name: study
    for study in run_studies(CONFIG)
    if any(figure.kind in LOOKED_KINDS for figure in study.figures)
    and any(draws_images(spec) for spec in OWN if spec.world == study.world)
}


def study_file(name):
    """The file of a study of this run."""
    return next(path for path in map(study_path, CONFIG.studies) if name_of(path) == name)


def learned_to_look_at(study):
    """The records of learning of the arms whose routers a study's figures show."""
    arms = {arm for figure in LOOKED[study].figures if figure.kind in LOOKED_KINDS for arm in figure.arms or ()}
    world = LOOKED[study].world
    trained = {spec.arm for spec in OWN if spec.world == world and spec.learning}
    return [LEARNED_RECORD.format(world=world, arm=arm) for arm in sorted(arms & trained)]


def shards_of(arm):
    """The shard records of a cell; `arm` is "{arm}" or the name of one."""
    return [f"{RESULTS}/cells/{{world}}/{arm}/seed{{seed}}/shards/{shard}.json" for shard in SHARDS]


def full_shards(wildcards):
    """The full arm's shards with the same seed, for paired measures; none for the full arm itself."""
    if wildcards.arm == BASELINE or f"{wildcards.world}/{BASELINE}/seed{wildcards.seed}" not in SPECS:
        return []
    return [path.format(world=wildcards.world, seed=wildcards.seed) for path in shards_of(BASELINE)]


def ran_records(wildcards):
    """The records that say what a cell executed: its shards, or its latency where it has no images."""
    paths = shards_of("{arm}") if draws_images(spec_of(wildcards)) else [f"{CELL}/latency.json"]
    return [path.format(**wildcards) for path in paths]


def lost_shards():
    """The shard records that are missing behind records made of them: nothing else would ask for them.

    Only those, because a campaign has tens of thousands, and each that is named takes memory of the graph.
    """
    made = [spec for spec in OWN if draws_images(spec) and Path(f"{spec.folder(RESULTS)}/cost.json").exists()]
    wanted = [f"{spec.folder(RESULTS)}/shards/{shard}.json" for spec in made for shard in SHARDS]
    return [path for path in wanted if not Path(path).exists()]


def lost_learning():
    """The records of learning that are missing behind specs made of them: what still needs them would fail."""
    made = [spec for spec in OWN if Path(f"{spec.folder(RESULTS)}/spec.json").exists()]
    learned = {(spec.world, spec.arm) for spec in made if spec.learning}
    learned |= {(spec.world, spec.weights_of.rpartition("@")[0]) for spec in made if spec.weights_of}
    wanted = sorted(LEARNED_RECORD.format(world=world, arm=arm) for world, arm in learned)
    return [path for path in wanted if not Path(path).exists()]


def cell_records(*names):
    """Records of these names of every cell; there are scores of images only."""
    return [
        f"{spec.folder(RESULTS)}/{name}.json"
        for spec in OWN
        for name in names
        if name != "scores" or draws_images(spec)
    ]
