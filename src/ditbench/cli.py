"""The command `ditbench`: one subcommand per stage of the workflow, with the words a person would type."""

from __future__ import annotations

import argparse
import errno
import json
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeGuard

from ditbench.caption_files.words import RULES, add_training, add_words
from ditbench.failures import noted
from ditbench.faults import Fault, sentence_of, tell, write_whole_lines
from ditbench.leases import VISIBLE, lease_for
from ditbench.warm import SOCKET, ask

if TYPE_CHECKING:
    from ditbench.config import Config
    from ditbench.reference_sets import ReferenceSet


# Of files and folders that users name.
_PLACES = (FileNotFoundError, FileExistsError, NotADirectoryError, IsADirectoryError, PermissionError)
_NO_PLACES = (errno.EROFS, errno.ENAMETOOLONG, errno.ELOOP, errno.ENOSPC, errno.EDQUOT)  # which have no class


def _of_a_place(error: Exception) -> TypeGuard[OSError]:
    """Whether something is wrong with a file or folder that the user can name or mend."""
    if not isinstance(error, OSError) or error.filename is None:
        return False
    return isinstance(error, _PLACES) or error.errno in _NO_PLACES


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a subcommand; what a user can mend is one sentence and exit status 2."""
    words = sys.argv[1:] if arguments is None else arguments
    if os.environ.get(SOCKET):
        status = ask(words)
        if status is not None:
            return status
    return run_here(words)


def run_here(words: Sequence[str]) -> int:
    """Runs a subcommand in this very process."""
    write_whole_lines()
    options = parser().parse_args(words)
    before, lease = os.environ.get(VISIBLE), None
    try:
        lease = lease_for(getattr(options, "device", None))
        status = options.command(options)
    except Fault as fault:
        if os.environ.get("DITBENCH_DEBUG"):
            raise
        tell(str(fault))
        return 2
    except KeyboardInterrupt:  # told to stop: nobody needs to know where
        return 130
    except BrokenPipeError:  # the reader of our output has gone: nothing is left to say
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:
        if os.environ.get("DITBENCH_DEBUG"):
            raise
        if _of_a_place(error):
            tell(f"{words[0]}: {error.filename}: {str(error.strerror).lower()}; name another place, or mend that one")
            return 2
        tell(f"{words[0]} failed with {sentence_of(error)}")
        return 1
    finally:
        if lease is not None:
            lease.end()
            if before is None:
                os.environ.pop(VISIBLE, None)
            else:
                os.environ[VISIBLE] = before
    return status or 0


def parser() -> argparse.ArgumentParser:
    """All subcommands and their options."""
    top = argparse.ArgumentParser(prog="ditbench", description=__doc__)
    commands = top.add_subparsers(required=True, metavar="COMMAND")

    def add(
        name: str, command: Callable[[argparse.Namespace], int | None], help_: str, *options: str
    ) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=help_, description=help_)
        sub.set_defaults(command=command)
        for option in options:
            _OPTIONS[option](sub)
        return sub

    add("worlds", _worlds, "list the worlds, and whether their weights are there", "config", "json")
    add("methods", _methods, "list the methods and their knobs", "json")
    add("judges", _judges, "list the judges, and whether what they need is there", "config", "json")
    add("studies", _studies, "list the studies: how many of their arms can be run, how many wait", "json")
    sub = add("study", _study, "show a study: published values, and those of cells at hand", "config", "results")
    sub.add_argument("name", metavar="STUDY", help="a name of `ditbench studies`, or a file")
    sub.add_argument(
        "--format",
        choices=("text", "md", "tex", "csv", "html"),
        help="text for a terminal, else Markdown, if not given",
    )
    sub.add_argument("--out", type=Path, metavar="FOLDER", help="write all four forms and the figures there instead")
    sub = add("look", _look, "look at networks while they draw, for figures that show it", "config", "results", "code")
    sub.add_argument("name", metavar="STUDY", help="a name of `ditbench studies`, or a file")
    sub.add_argument("--device", help="the configuration's if not given")
    sub.add_argument("--batch", type=_count, default=8, help="images drawn at once (default %(default)s)")
    sub.add_argument("--out", type=Path, help="a record of it, as the workflow asks for")
    add("cells", _cells, "list the cells that a configuration asks for, and their state", "config", "results", "json")
    for name, command, text, count in (
        ("show", _show, "say everything about a cell", 1),
        ("diff", _diff, "say what differs between two cells", 2),
    ):
        sub = add(name, command, text, "config", "results", "json")
        sub.add_argument("cells", nargs=count, metavar="CELL", help="world/arm/seedN, an arm, or the start of its hash")
        if count == 2:
            sub.add_argument("--other-results", type=Path, help="where the second cell is, if elsewhere")
            sub.add_argument(
                "--other-config", type=Path, help="the configuration that the second cell is of, if another"
            )
    sub = add("routers", _routers, "draw what an arm's routers say of an image", "device", "weights")
    sub.add_argument(
        "record", type=Path, metavar="RECORD", help="of its learning: results/learned/WORLD/ARM/learned.json"
    )
    sub.add_argument("--caption", required=True)
    sub.add_argument("--seed", type=_from_zero, default=0)
    sub.add_argument("--out", type=Path, required=True, metavar="FILE", help="a .png, .svg or .pdf file")
    sub = add(
        "redundancy", _redundancy, "draw where tokens are alike while images are drawn", "device", "weights", "json"
    )
    sub.add_argument("world", metavar="WORLD")
    sub.add_argument("--captions", type=_count, default=16, help="of the world (default %(default)s)")
    sub.add_argument("--seed", type=_from_zero, default=0)
    sub.add_argument("--batch", type=_count, default=8, help="images drawn at once (default %(default)s)")
    sub.add_argument("--out", type=Path, required=True, metavar="FILE", help="a .png, .svg or .pdf file")
    sub = add("recommend", _recommend, "say which arm to take, from what is finished", "config", "results", "json")
    sub.add_argument("--world", help="the configuration's if not given")
    sub.add_argument("--speedup", type=_speedup, help="at least so many times as fast as full")
    sub.add_argument("--quality-loss", metavar="SHARE", help="at most so much of full's quality lost: 1%% or 0.01")
    sub.add_argument("--measure", help="what quality is measured by; the study's if not given")
    sub = add(
        "verify", _verify, "draw and score a sample of a finished run again, and compare", "config", "results", "json"
    )
    sub.add_argument("cells", nargs="*", metavar="CELL", help="all finished cells if none is named")
    sub.add_argument("--images", type=_count, default=8, help="images of each cell that are drawn again")
    sub.add_argument("--seed", type=_from_zero, default=0, help="of the choice of images")
    sub.add_argument("--device", help="the configuration's if not given")
    sub.add_argument("--sets", action="store_true", help="judges of whole sets too, over all stored images")
    sub = add("pack", _pack, "pack the records of finished cells into one file", "config", "results")
    sub.add_argument("cells", nargs="*", metavar="CELL", help="all finished cells if none is named")
    sub.add_argument("--out", type=Path, required=True, metavar="FILE", help="a .zip file, for the setting `elsewhere`")
    sub = add("plan", _plan, "say what a run will take before it starts", "config", "results", "json")
    speed = sub.add_mutually_exclusive_group()
    speed.add_argument(
        "--images-per-second", type=_speedup, metavar="N", help="of the full arm on one worker, if nothing tells it"
    )
    speed.add_argument(
        "--tmacs-per-second",
        type=_speedup,
        metavar="N",
        help="tera-MACs that it computes; the ledger counts images'",
    )

    sub = add("macs", _macs, "say what a method costs in a world, without weights", "json")
    sub.add_argument("world", metavar="WORLD")
    sub.add_argument("method", metavar="METHOD")
    sub.add_argument("--set", nargs="+", action="extend", default=[], metavar="KNOB=VALUE", help="knobs of the method")
    sub.add_argument("--steps", type=_count, help="sampling steps instead of the world's")
    sub.add_argument("--text-tokens", type=_count, help="length of the text, padding included, instead of the world's")
    sub.add_argument(
        "--as-published", action="store_true", help="count what diffusers repeats as often as the original network"
    )
    sub.add_argument(
        "--as-toca-counts", action="store_true", help="FLOPs by the calculator of ToCa's code as well (DiT)"
    )
    sub.add_argument("--by", choices=("step", "branch"), help="what each step costs, or each kind of branch, besides")
    sub = add("audit", _audit, "count the MACs that papers print, in every convention", "code")
    sub.add_argument("--study", default="macs_audit", help="an audit of `studies`, or its file")
    sub.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="where record, tables and page go")
    add("schema", _schema, "print the configuration's JSON schema")

    sub = add("captions", _captions, "write the captions of a run", "world", "out", "code")
    sub.add_argument("--name", required=True, help="name of the caption set")
    sub.add_argument("--count", type=int, required=True)
    sub.add_argument("--seed", type=_from_zero, default=0)
    sub.add_argument("--split", choices=("evaluation", "train"), default="evaluation", help="of the world's own")
    add_words(sub)
    sub = add("overlap", _overlap, "compare captions with those that something was fitted on", "captions", "code")
    add_training(sub)
    sub.add_argument("--rule", choices=RULES, default="refuse", help="what an overlap is")
    sub.add_argument("--out", type=Path, required=True, help="the record to write")
    sub = add("captions-of", _captions_of, "say what a caption file holds, before a configuration names it", "json")
    sub.add_argument("file", type=Path, metavar="FILE")
    sub.add_argument("--format", help="found out if not given")
    sub.add_argument("--column", help="of a parquet file")
    add_training(sub, required=False)
    sub = add("references", _references, "write the reference images of a world", "world", "out", "code")
    sub.add_argument("--count", type=_count, help="how many of the world's own; of a folder, all if not given")
    _add_reference_source(sub)
    sub = add("features", _features, "write the features of reference images in a network", "device", "out", "code")
    sub.add_argument("--references", type=Path, required=True, help="the reference images' record")
    sub.add_argument("--network", required=True)
    _add_judge_weights(sub)
    sub.add_argument("--count", type=_count)
    _add_reference_source(sub)
    add("embed", _embed, "embed a caption set", "world", "captions", "device", "weights", "out", "code")
    sub = add("learn", _learn, "fit an arm's method on training captions", "device", "weights", "out", "code")
    sub.add_argument("--captions", type=Path, help="a record of training captions; none for what is fine-tuned")
    sub.add_argument("--spec", required=True, help="the spec of one of its cells as JSON")
    sub.add_argument("--embeddings", type=Path, help="of these captions")
    sub.add_argument("--batch", type=_count, default=16)
    _add_judge_weights(sub)
    sub.add_argument("--pairs", help="images with captions to fine-tune on; the world's own without")
    _references_to(sub, "real images that a search compares with")
    sub = add("spec", _spec, "write a cell's spec and plan", "out", "code")
    sub.add_argument("--spec", required=True, help="the spec as JSON")
    sub.add_argument("--learned", type=Path, help="record of what its method learned")
    sub.add_argument("--lent", type=Path, help="record of the arm on whose fine-tuned weights it runs")
    sub = add("generate", _generate, "draw one shard of a cell's images", "spec", *_DRAWING, "out", "code")
    sub.add_argument("--embeddings", type=Path, required=True)
    sub.add_argument("--first", type=int, required=True, help="index of the shard's first caption")
    sub.add_argument("--last", type=int, required=True, help="index of its last caption, inclusive")
    sub.add_argument("--batch", type=int, default=16)
    add("cost", _cost, "bill what a cell's traces say was executed", "spec", "shards", "out", "code")
    sub = add("score", _score, "judge a cell's images", "spec", "shards", "captions", "device", "out", "code")
    _references_to(sub, "the world's reference images, where it has any")
    sub.add_argument("--judges", nargs="*", help="which judges; the world's that have their weights if none is named")
    _add_judge_weights(sub)
    sub.add_argument("--full-shards", type=Path, nargs="*", help="shards of the full arm, for paired measures")
    sub = add("time", _time, "time an arm interleaved with the full model", "spec", *_DRAWING, "out", "code")
    sub.add_argument("--embeddings", type=Path, help="of the captions; random weights need none")
    sub.add_argument("--baseline", type=Path, required=True, help="spec.json of the full arm")
    sub.add_argument("--rounds", type=_count, default=4)
    sub.add_argument("--batch", type=_count, nargs="+", default=[8], help="images at once; the first is the main one")
    sub.add_argument("--modes", nargs="+", choices=("eager", "compiled", "graphs"), default=["eager"])
    sub.add_argument("--contended", choices=("refuse", "report"), default="refuse", help="where others use the machine")
    add("spent", _spent, "say where the time of the last run went", "config", "results", "json")
    add("publish", _publish, "publish finished cells to MLflow", "config", "results", "out")
    add("report", _report, "render tables, figures and the page from what is there", "config", "results")
    sub = add("warm", _warm, "load the heavy libraries once, for the commands of a run")
    sub.add_argument("--socket", type=Path, required=True, help="where commands find it ($DITBENCH_WARM)")
    sub.add_argument("--run", type=int, required=True, help="the process with which it ends")
    sub = add("mlflow", _mlflow, "start the MLflow pages on this run's store, until Ctrl+C", "config", "results")
    sub.add_argument("--port", type=_port, default=5000, help="5000 if not given; the next free one if it is taken")
    sub.add_argument("--host", default="127.0.0.1", help="address to listen on; this machine alone if not given")
    _add_assets(add("assets", lambda options: options.step(options), "make the shipped weights of the embedded world"))
    return top


def _add_judge_weights(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("--judge-weights", nargs="*", default=[], metavar="KEY=PLACE", help="as in the configuration")
    sub.add_argument(
        "--known-weights", nargs="*", default=[], metavar="KEY=HASH", help="refuse files that are not these"
    )


_OPTIONS: dict[str, Callable[[argparse.ArgumentParser], Any]] = {
    "config": lambda p: p.add_argument(
        "--config", type=Path, help="settings; if not given those of the last run in --results, or config.yaml"
    ),
    "results": lambda p: p.add_argument("--results", type=Path, help="results folder instead of the configuration's"),
    "json": lambda p: p.add_argument("--json", action="store_true", help="for a program"),
    "world": lambda p: p.add_argument("--world", required=True),
    "out": lambda p: p.add_argument("--out", type=Path, required=True, help="the record to write"),
    "code": lambda p: p.add_argument("--code", help="hash of the code that the workflow ran, for the record"),
    "spec": lambda p: p.add_argument("--spec", type=Path, required=True, help="a cell's spec.json"),
    "captions": lambda p: p.add_argument("--captions", type=Path, required=True),
    "weights": lambda p: p.add_argument("--weights", help="a folder, a hub repository or random, not the world's own"),
    "device": lambda p: p.add_argument("--device", default="cpu"),
    "shards": lambda p: p.add_argument("--shards", type=Path, nargs="+", required=True, help="the shards' records"),
}
CONFIG = Path("config.yaml")


def _references_to(sub: argparse.ArgumentParser, what: str) -> None:
    sub.add_argument("--references", type=Path, help=what)
    sub.add_argument("--features", type=Path, nargs="*", default=[], help="records of the references' features")
    sub.add_argument("--statistics", type=Path, help="statistics of references in an .npz file")


_DRAWING = ("captions", "device", "weights")


def _add_assets(assets: argparse.ArgumentParser) -> None:
    steps = assets.add_subparsers(required=True, metavar="STEP")
    for name, step, text in (
        ("train-backbone", _train_backbone, "train the backbone, or continue in --work"),
        ("train-mmdit", _train_mmdit, "train the second network, which reads by the backbone's text encoder"),
        ("train-judges", _train_judges, "train the judges, or continue in --work"),
        ("ship-learned", _ship_learned, "take over what arms of a run have learned, for `shipped:ARM` in a knob"),
        ("model-card", _model_card, "write the model card from the scores of a finished run"),
    ):
        sub = steps.add_parser(name, help=text, description=text)
        sub.set_defaults(step=step)
        sub.add_argument("--folder", type=Path, default=Path("assets/scenes"), help="where the shipped files go")
        sub.add_argument("--work", type=Path, default=Path("results/assets"), help="where checkpoints are kept")
        sub.add_argument("--device", default="cpu")
        if name == "ship-learned":
            sub.add_argument("records", type=Path, nargs="+", help="results/…/learned/WORLD/ARM/learned.json")
        if name == "model-card":
            sub.add_argument(
                "--config",
                type=Path,
                nargs="+",
                default=[Path("config.yaml")],
                help="of the runs that drew pictures",
            )
            sub.add_argument("--results", type=Path, nargs="+", help="their folders, where not the configurations' own")
            sub.add_argument("--kept", action="store_true", help="from the records in --folder alone, without a run")


def _table(heads: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """A plain table, columns as wide as their longest entry."""
    lines = [[str(value) for value in row] for row in (heads, *rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(heads))]
    for number, line in enumerate(lines):
        print("  ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)).rstrip())
        if number == 0:
            print("  ".join("-" * width for width in widths))


def _worlds(options: argparse.Namespace) -> None:
    from ditbench.judges import judges_of
    from ditbench.judges.registry import default_judges
    from ditbench.worlds import get_world, world_names

    worlds, given = [get_world(name) for name in world_names()], _given_weights(options.config or CONFIG)
    places = {world.name: world.weights_place(given.get(world.name)) for world in worlds}
    if options.json:
        keys = ["name", "summary", "family", "default_steps", "guidance", "cfg_branches", "dtype", "image_size"]
        keys += ["size_text", "tokens", "text_tokens"]
        bodies = [{key: getattr(w, key) for key in keys} | {"judge_names": judges_of(w.name)} for w in worlds]
        for body in bodies:
            body["weights"], body["weights_found"] = places[body["name"]]
        print(json.dumps(bodies, indent=1))
        return
    rows, judge_places = [], _settings(options.config or CONFIG).get("judge_weights", {})
    for w in worlds:
        place, there = places[w.name]
        found = f"{place}: {'found' if there else 'not on this machine'}"
        sampling = (w.size_text, w.default_steps, w.guidance, w.tokens, w.text_tokens or "-")
        judges = f"{len(judges_of(w.name))}, {len(default_judges(w.name, judge_places))} ready"
        rows.append((w.name, w.family, *sampling, judges, found))
    _table(("world", "family", "size", "steps", "guidance", "tokens", "text", "judges", "weights"), rows)
    print("\n`ditbench judges` says which they are, and what those that are not ready lack.")


def _judges(options: argparse.Namespace) -> None:
    from ditbench.judges.base import IMAGES, VIDEOS
    from ditbench.judges.registry import judge_classes

    places = _settings(options.config or CONFIG).get("judge_weights", {})
    bodies = [
        {
            "name": judge.name,
            "summary": judge.summary,
            "worlds": list(judge.worlds),
            "needs": [
                {
                    "key": w.key,
                    "what": w.what,
                    "offered": w.offered,
                    "found": None if (found := w.find(places)) is None else str(found),
                }
                for w in judge.needs
            ],
            "package": None
            if judge.package is None
            else {"name": judge.package.name, "how": judge.package.how, "found": judge.package.there},
        }
        for judge in judge_classes().values()
    ]
    if options.json:
        print(json.dumps(bodies, indent=1))
        return
    rows: list[tuple[str, ...]] = []
    kinds = {IMAGES: "any", VIDEOS: "any of videos"}
    for judge in judge_classes().values():
        missing = [w.key for w in judge.needs if w.find(places) is None]
        if judge.package is not None and not judge.package.there:
            missing.insert(0, f"the package {judge.package.name}")
        worlds = ", ".join(kinds.get(world, world) for world in judge.worlds)
        rows.append((judge.name, worlds, f"needs {', '.join(missing)}" if missing else "ready", judge.summary))
    _table(("judge", "worlds", "state", "what it says"), rows)
    absent = {w.key: w for judge in judge_classes().values() for w in judge.needs if w.find(places) is None}
    if absent:
        print("\nNot on this machine; give their places as `judge_weights: {KEY: PATH}`:")
        _table(("key", "what", "where its owner offers it"), [(w.key, w.what, w.offered) for w in absent.values()])
    packages = {judge.package.name: judge.package for judge in judge_classes().values() if judge.package is not None}
    for package in packages.values():
        if not package.there:
            print(f"\nThe package {package.name} is not installed; get it with `{package.how}`.")


def _configured(options: argparse.Namespace) -> Config:
    """The configuration that a command is about: --config, else that of the last run in --results, else config.yaml."""
    from ditbench.config import kept_settings, load_config
    from ditbench.runs import settings_of

    if options.config is not None:
        return load_config(options.config)
    if options.results is not None:
        return load_config(settings_of(options.results) or CONFIG)
    config = load_config(CONFIG)
    last = settings_of(config.results)
    if last is not None and last.name != kept_settings(config).name:
        tell(
            f"{CONFIG} is asked about; the last run in {config.results} had other settings: "
            f"with --results {config.results} they are asked about"
        )
    return config


def _settings(path: Path) -> dict[str, Any]:
    """A configuration's settings; none where there is none, or it is wrong: names are looked up here."""
    from ditbench.config import load_config

    try:
        return load_config(path).model_dump() if path.exists() else {}
    except Fault as fault:
        tell(f"{path} is passed over: {fault}")
        return {}


def _given_weights(path: Path) -> dict[str, str]:
    """The weights that a configuration names."""
    given: dict[str, str] = _settings(path).get("weights", {})
    return given


def _methods(options: argparse.Namespace) -> None:
    from ditbench.methods import method_class, method_names

    classes = [method_class(name) for name in method_names()]
    if options.json:
        bodies = [
            {
                "name": c.name,
                "summary": c.summary,
                "paper": c.paper,
                "knobs": {n: {**k._asdict(), "type": k.type.__name__} for n, k in c.knobs().items()},
            }
            for c in classes
        ]
        print(json.dumps(bodies, indent=1))
        return
    _table(("method", "what it does", "paper"), [(c.name, c.summary, c.paper) for c in classes])
    print()
    rows = [(c.name, n, k.default, k.type.__name__, _range(k), k.doc) for c in classes for n, k in c.knobs().items()]
    _table(("method", "knob", "default", "type", "values", "meaning"), rows)


def _range(knob: Any) -> str:
    if knob.choices is not None:
        return " | ".join(map(str, knob.choices))
    low = "" if knob.least is None else f">= {knob.least:g}"
    high = "" if knob.most is None else f"<= {knob.most:g}"
    return " and ".join(part for part in (low, high) if part) or "any"


def _studies(options: argparse.Namespace) -> None:
    from ditbench.inspect.studies import listed

    found = listed()
    if options.json:
        print(json.dumps(found, indent=1))
        return
    _table(tuple(found[0]), [tuple(map(str, each.values())) for each in found])


def _study(options: argparse.Namespace) -> None:
    from ditbench.inspect.studies import rendered, standing, write, write_figures
    from ditbench.report.results import load_results
    from ditbench.study import load_study
    from ditbench.sweeps import run_studies

    config = _configured(options)
    own = {study.name: study for study in run_studies(config)} if config.sweeps else {}
    if options.name in own and options.name not in config.studies:  # a sweep's, which has no file
        study, results = own[options.name], load_results(config, options.results)
    else:
        study = load_study(options.name)
        results = standing(study, config, options.results, options.name)
    if options.out is None:
        print(rendered(study, results, options.format or ("text" if sys.stdout.isatty() else "md")), end="")
        if options.format is not None:
            return
        folder = results.root / "studies" / study.name
    else:
        folder = options.out
        for path in write(study, results, folder):
            print(path)
    for line in write_figures(study, results, folder):
        print(line)


def _look(options: argparse.Namespace) -> None:
    from ditbench.inspect.look import write_looked
    from ditbench.study import load_study

    config = _configured(options)
    root = Path(options.results if options.results is not None else config.results)
    study, device = load_study(options.name), options.device or config.device
    for path in write_looked(study, config, root, options.batch, device, options.out, options.code):
        print(path)


def _cells(options: argparse.Namespace) -> None:
    from dataclasses import asdict

    from ditbench.cells import cell_table, damage, studies_of
    from ditbench.report.results import load_results

    config = _configured(options)
    specs = cell_table(config)
    cells = load_results(config, options.results).cells
    # The records say what was made; what became of the images since is seen in their files only.
    damaged = {cell.hash: damage(cell.shards) for cell in cells}
    states = {c.hash: f"damaged: {damaged[c.hash]}" if damaged[c.hash] else c.state_text for c in cells}
    states |= {c.hash: f"{c.state_text}, taken from {c.elsewhere}" for c in cells if c.elsewhere is not None}
    if options.json:
        bodies = [
            {**asdict(s), "hash": s.hash, "studies": studies_of(config, s), "state": states[s.hash]} for s in specs
        ]
        print(json.dumps(bodies, indent=1))
        return
    rows = [
        (s.name, s.method, _knobs(s.knobs), s.images, s.hash, ", ".join(studies_of(config, s)), states[s.hash])
        for s in specs
    ]
    _table(("cell", "method", "knobs", "images", "hash", "studies", "state"), rows)


def _knobs(knobs: dict[str, Any]) -> str:
    return ", ".join(f"{name}={value}" for name, value in knobs.items()) or "-"


def _show(options: argparse.Namespace) -> None:
    from ditbench.inspect import show
    from ditbench.inspect.cells import find_cell, load

    found = load(_configured(options), options.results)
    cell = find_cell(found, options.cells[0])
    data = show.as_data(cell, found.root)
    print(json.dumps(data, indent=1) if options.json else show.told(cell, found.root))


def _routers(options: argparse.Namespace) -> None:
    from ditbench.inspect.routers import router_maps
    from ditbench.report.drawn.router_maps import maps_figure
    from ditbench.storage import replacing

    kind = _picture_kind(options.out)
    maps = router_maps(options.record, options.caption, options.seed, options.device, options.weights)
    with replacing(options.out) as partial:
        maps_figure(maps).savefig(partial, format=kind, dpi=150)
    print(f"{options.out}: correlation of what passes by with mean scores {maps.correlation:.2f}")


def _redundancy(options: argparse.Namespace) -> None:
    from ditbench.inspect.redundancy import measure
    from ditbench.report.drawn.redundancy_curves import as_data, redundancy_figure
    from ditbench.storage import replacing

    kind = _picture_kind(options.out)
    found = measure(options.world, options.captions, options.seed, options.batch, options.device, options.weights)
    with replacing(options.out) as partial:
        redundancy_figure(found).savefig(partial, format=kind, dpi=150)
    data = as_data(found)
    if options.json:
        print(json.dumps(data, indent=1))
        return
    by_step = data["by_step"]
    print(f"{options.out}: {data['samples']} images of {options.world}, from the first step to the last")
    for name in by_step:
        print(f"  {name:12} {by_step[name][0]:10.4g} {by_step[name][-1]:10.4g}")


def _picture_kind(path: Path) -> str:
    kind = path.suffix.removeprefix(".")
    if kind not in ("png", "svg", "pdf"):
        raise Fault(f"--out: {path} must end in .png, .svg or .pdf")
    return kind


def _diff(options: argparse.Namespace) -> None:
    from ditbench.config import load_config
    from ditbench.inspect import diff
    from ditbench.inspect.cells import find_cell, load

    config = _configured(options)
    other = load_config(options.other_config) if options.other_config else config
    first = load(config, options.results)
    elsewhere = options.other_results or (options.results if options.other_config is None else None)
    second = load(other, elsewhere)
    pair = (find_cell(first, options.cells[0]), find_cell(second, options.cells[1]))
    found = diff.diff(*pair, (first.root, second.root))
    print(json.dumps(diff.as_data(found), indent=1) if options.json else diff.told(found))


def _recommend(options: argparse.Namespace) -> None:
    from ditbench.inspect import recommend
    from ditbench.inspect.cells import load
    from ditbench.sweeps import run_studies
    from ditbench.worlds import get_world

    if options.speedup is None and options.quality_loss is None:
        raise Fault("say what you want: --speedup 1.8, --quality-loss 1%, or both")
    config = _configured(options)
    world = get_world(options.world or config.world).name
    studies = [study for study in run_studies(config) if study.world == world]
    measure = options.measure or next((study.figure.y for study in studies if study.figure), None)
    if measure is None:
        raise Fault(
            f"none of the configuration's studies names a measure of quality of world {world}: give one as --measure"
        )
    loss = recommend.parse_loss(options.quality_loss) if options.quality_loss is not None else None
    wish = recommend.Wish(world, measure, options.speedup, loss)
    controls = {name for study in studies for name in study.controls}
    advice = recommend.recommend(load(config, options.results), wish, controls)
    print(json.dumps(recommend.as_data(advice), indent=1) if options.json else recommend.told(advice))


def _verify(options: argparse.Namespace) -> int:
    from ditbench.inspect import verify
    from ditbench.inspect.cells import find_cell, load

    config = _configured(options)
    found = load(config, options.results)
    done = [cell for cell in found.cells if cell.state == "done" and cell.elsewhere is None]
    cells = [find_cell(found, name) for name in options.cells] or done
    if not options.cells and (elsewhere := sum(cell.elsewhere is not None for cell in found.cells)):
        print(f"verify: {elsewhere} cells that were finished elsewhere are passed over", file=sys.stderr)
    failed = [] if options.cells else [cell for cell in found.cells if cell.state == "failed"]
    for cell in failed:
        print(f"verify: {cell.world}/{cell.arm}/seed{cell.seed} is passed over: {cell.state_text}", file=sys.stderr)
    report = verify.verify(
        config, found, cells, options.images, options.seed, options.device or config.device, options.sets
    )
    print(json.dumps(verify.as_data(report), indent=1) if options.json else verify.told(report))
    return 0 if report.equal else 1


def _pack(options: argparse.Namespace) -> None:
    from ditbench.elsewhere import pack
    from ditbench.inspect.cells import find_cell, load

    found = load(_configured(options), options.results)
    cells = [find_cell(found, name) for name in options.cells] or [c for c in found.cells if c.state == "done"]
    count = pack(found, cells, options.out)
    print(f"{options.out}: {count} of {len(found.cells)} cells, {options.out.stat().st_size / 1e6:.1f} MB")


def _plan(options: argparse.Namespace) -> None:
    from ditbench.caption_files.overlap import refuse_overlap
    from ditbench.cells import cell_table
    from ditbench.elsewhere import finished_elsewhere, packs_of
    from ditbench.forecast import Speed, forecast, speed_of_macs, told
    from ditbench.judges.registry import need_judges
    from ditbench.worlds import get_world

    config = _configured(options)
    specs = cell_table(config)
    taken = finished_elsewhere(packs_of(config.elsewhere, options.results or config.results), specs)
    worlds = list(dict.fromkeys(spec.world for spec in specs))
    stated: dict[str, Speed] = {}
    if options.images_per_second:
        if len(worlds) > 1:
            raise Fault(
                f"--images-per-second is of one world, and this run has {', '.join(worlds)}; --tmacs-per-second is of "
                "the device"
            )
        said = f"{options.images_per_second:g} images of full a second, as stated"
        stated = dict.fromkeys(worlds, (options.images_per_second, said))
    elif options.tmacs_per_second:
        stated = {world: speed_of_macs(world, options.tmacs_per_second) for world in worlds}
    outlook = forecast(config, options.results, stated)
    print(json.dumps(outlook, indent=1) if options.json else told(outlook))
    drawing = [spec for spec in specs if spec.hash not in taken]
    for world in dict.fromkeys(spec.world for spec in drawing):
        get_world(world).need_weights(config.weights.get(world))
    if drawing:
        need_judges(config.judges or (), config.judge_weights)
    refuse_overlap(config.captions, config.images, map(get_world, worlds))
    if outlook["disk_bytes_to_write"] > outlook["disk_bytes_free"]:
        raise Fault("the disk has too little room for these images; make room, or set another `results` folder")


def _speedup(text: str) -> float:
    from ditbench.inspect.recommend import parse_speedup

    try:
        return parse_speedup(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number above 0") from None


def _count(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 1 on")
    return int(text)


def _from_zero(text: str) -> int:
    if not text.isdigit():
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 0 on")
    return int(text)


def _port(text: str) -> int:
    if not text.isdigit() or not 1 <= int(text) <= 65535:
        raise argparse.ArgumentTypeError(f"{text!r} is not a port, a number from 1 to 65535")
    return int(text)


def _macs(options: argparse.Namespace) -> None:
    from ditbench.macs import count_macs, parse_knobs, told, told_by

    method = parse_knobs(options.method, options.set)
    # Before the first number most of the time goes into these two.
    print("macs: loading torch and diffusers", file=sys.stderr, flush=True)
    counted = count_macs(
        options.world,
        method,
        steps=options.steps,
        text_tokens=options.text_tokens,
        as_published=options.as_published,
        as_toca_counts=options.as_toca_counts,
    )
    print(json.dumps(counted, indent=1) if options.json else told(counted))
    if options.by and not options.json:
        print(f"\n{told_by(counted, options.by)}")


def _audit(options: argparse.Namespace) -> None:
    from ditbench.report.audit import write_audit

    print(write_audit(options.study, options.out, options.code))


def _schema(options: argparse.Namespace) -> None:
    from ditbench.config import schema

    print(json.dumps(schema(), indent=1))


def _captions(options: argparse.Namespace) -> None:
    from ditbench.caption_files.options import selection_from
    from ditbench.caption_sets import write_captions
    from ditbench.worlds import get_world

    world = get_world(options.world)
    with noted(options.out, "captions", options.out.parent):
        selection = selection_from(options)
        write_captions(
            world, options.name, options.count, options.seed, options.out, selection, options.code, options.split
        )


def _overlap(options: argparse.Namespace) -> None:
    from ditbench.caption_files.options import training_from
    from ditbench.caption_files.overlap import write_overlap

    write_overlap(options.captions, training_from(options), options.rule, options.out, options.code)


def _captions_of(options: argparse.Namespace) -> None:
    from ditbench.caption_files.look import look, told
    from ditbench.caption_files.options import CaptionFile, training_from

    training = training_from(options) if options.train else None
    body = look(CaptionFile(options.file, options.format, options.column), training)
    print(json.dumps(body, indent=1, ensure_ascii=False) if options.json else told(body))


def _references(options: argparse.Namespace) -> None:
    from ditbench.caption_sets import write_references
    from ditbench.reference_sets import write_reference_set
    from ditbench.worlds import get_world

    source = _reference_source(options)
    with noted(options.out, "references", options.out.parent):
        if source is not None:
            write_reference_set(options.world, source, options.out, options.code)
            return
        if options.count is None:
            raise Fault("--count says how many of the world's own references to make")
        write_references(get_world(options.world), options.count, options.out, options.code)


def _add_reference_source(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("--folder", type=Path, help="a folder or ZIP file of images instead of the world's own")
    sub.add_argument("--statistics", type=Path, help="statistics of images in an .npz file")
    sub.add_argument("--crop", choices=("none", "centre"), default="none", help="how images of a folder are cut")
    sub.add_argument("--size", type=_count, help="pixels of a side after --crop centre")


def _reference_source(options: argparse.Namespace) -> ReferenceSet | None:
    from ditbench.reference_sets import ReferenceSet

    if options.folder is None and options.statistics is None:
        return None
    return ReferenceSet(options.folder, options.statistics, options.count, options.crop, options.size)


def _features(options: argparse.Namespace) -> None:
    from ditbench.reference_sets import write_reference_features

    with noted(options.out, "features of the references", options.out.parent):
        write_reference_features(
            options.references,
            options.network,
            options.out,
            _reference_source(options),
            options.device,
            _judge_places(options),
            options.code,
        )


def _embed(options: argparse.Namespace) -> None:
    from ditbench.generate import embed

    with noted(options.out, "text embeddings", options.out.parent):
        embed(options.world, options.captions, options.out, options.device, options.weights, options.code)


def _learn(options: argparse.Namespace) -> None:
    from ditbench.cells import Spec

    spec = Spec.read(options.spec, "--spec")
    with noted(options.out, "learning", options.out.parent):
        from ditbench.learn.job import write_learned
        from ditbench.learn.real import RealImages

        write_learned(
            spec,
            options.captions,
            options.embeddings,
            options.out,
            options.batch,
            options.device,
            options.weights,
            options.code,
            _judge_places(options),
            options.pairs,
            RealImages(options.references, options.features, options.statistics) if options.references else None,
        )


def _spec(options: argparse.Namespace) -> None:
    from dataclasses import asdict

    from ditbench.cells import Spec
    from ditbench.generate import write_plan
    from ditbench.records import write_record
    from ditbench.storage import hash_file

    spec = Spec.read(options.spec, "--spec")
    with noted(options.out, "spec", options.out.parent):
        body: dict[str, Any] = {**asdict(spec), "hash": spec.hash}
        source = {}
        if options.learned is not None:
            from ditbench.learn.job import read_found

            body["found"] = read_found(options.learned, body)
            source = {"found": {**body["found"], "record": str(options.learned)}}
        if spec.weights_of is not None:
            from ditbench.learn.job import read_lent

            if options.lent is None:
                raise Fault(
                    f"cell {spec.name} runs on the weights of {spec.weights_of}; --lent names its training's record"
                )
            body["lent"] = read_lent(options.lent, spec.weights_of)
        plan = options.out.with_name("plan.json")
        write_plan({**body, **source}, plan)
        write_record(options.out, "spec", {**body, "plan_sha256": hash_file(plan)}, code=options.code)


def _generate(options: argparse.Namespace) -> None:
    with noted(options.out, "images", options.spec.parent):
        from ditbench.generate import generate_shard

        generate_shard(
            options.spec,
            options.captions,
            options.embeddings,
            options.first,
            options.last,
            options.out,
            options.batch,
            options.device,
            options.weights,
            options.code,
        )


def _cost(options: argparse.Namespace) -> None:
    with noted(options.out, "ledger", options.spec.parent):
        from ditbench.generate import write_cost

        write_cost(options.spec, options.shards, options.out, options.code)


def _score(options: argparse.Namespace) -> None:
    with noted(options.out, "judges", options.spec.parent):
        from ditbench.score import score_cell

        score_cell(
            options.spec,
            options.shards,
            options.captions,
            options.references,
            options.full_shards or None,
            options.out,
            options.judges or None,
            options.device,
            options.code,
            _judge_places(options),
            options.features,
            options.statistics,
        )


def _judge_places(options: argparse.Namespace) -> dict[str, str]:
    """The places of judges' weights, whose files are still those that are known."""
    from ditbench.judges.registry import check_identities

    places = _pairs(options.judge_weights, "--judge-weights", "KEY=PLACE")
    check_identities(places, _pairs(options.known_weights, "--known-weights", "KEY=HASH"))
    return places


def _pairs(pairs: Sequence[str], option: str, form: str) -> dict[str, str]:
    """What stands for each key in words such as KEY=PLACE."""
    wrong = [pair for pair in pairs if not all(pair.partition("=")[::2])]
    if wrong:
        raise Fault(f"{option}: {wrong[0]!r} must be {form}")
    return {key: place for key, _, place in (pair.partition("=") for pair in pairs)}


def _time(options: argparse.Namespace) -> None:
    with noted(options.out, "stopwatch", options.spec.parent):
        from ditbench.stopwatch import Protocol, time_arm

        batches, modes = tuple(dict.fromkeys(options.batch)), tuple(dict.fromkeys(options.modes))
        time_arm(
            options.spec,
            options.baseline,
            options.captions,
            options.embeddings,
            options.out,
            Protocol(options.rounds, batches, modes, options.contended == "report"),
            options.device,
            options.weights,
            options.code,
        )


def _publish(options: argparse.Namespace) -> None:
    from ditbench.report.tracking.publishing import publish

    publish(_configured(options), options.results, options.out)


def _report(options: argparse.Namespace) -> None:
    from ditbench.report.build import write_report

    print(write_report(_configured(options), options.results))


def _spent(options: argparse.Namespace) -> None:
    from ditbench.report.results import load_results
    from ditbench.report.timing import told, wall_time

    found = load_results(_configured(options), options.results)
    for damaged in found.damaged:
        tell(f"not counted: {damaged}")
    wall = wall_time(found.run, found.jobs)
    if wall is None:
        raise Fault(_no_run(found.root, found.run is None))
    if options.json:
        body = {
            "wall_seconds": wall.seconds,
            "workers": wall.run.workers,
            "unit": wall.run.unit,
            "jobs": wall.jobs,
            "share": wall.share,
            "worker_seconds": wall.work,
        }
        print(json.dumps(body, indent=1))
    else:
        whole = sum(wall.work.values())
        print(told(wall))
        _table(("what", "share"), [(name, f"{value / whole:.1%}") for name, value in wall.work.items()])


def _no_run(root: Path, of_others: bool) -> str:
    """Why there is nothing to say about a run."""
    from ditbench.runs import read_run

    run = read_run(root)
    if run is None:
        return f"no run is noted in {root}"
    if of_others:
        return f"the last run in {root} had other settings: ditbench spent --config {root}/configs/{run.settings}"
    return f"the last run in {root} has made no record yet"


def _warm(options: argparse.Namespace) -> None:
    from ditbench.warm import load_libraries, serve

    serve(options.socket, options.run, load_libraries, run_here)


def _mlflow(options: argparse.Namespace) -> None:
    from ditbench.report.tracking.serving import serve

    serve(_configured(options), options.results, options.port, options.host)


def _train_backbone(options: argparse.Namespace) -> None:
    from ditbench.generate import check_device
    from ditbench.worlds.scenes.recipe.export import make_backbone

    make_backbone(options.work / "backbone", options.folder, check_device(options.device))


def _train_mmdit(options: argparse.Namespace) -> None:
    from ditbench.generate import check_device
    from ditbench.worlds.scenes.recipe.export import make_mmdit

    make_mmdit(options.work / "mmdit", options.folder, check_device(options.device))


def _train_judges(options: argparse.Namespace) -> None:
    from ditbench.generate import check_device
    from ditbench.worlds.scenes.recipe.judges import train_judges

    train_judges(options.folder, check_device(options.device), work=options.work / "judges")


def _ship_learned(options: argparse.Namespace) -> None:
    from ditbench.learn.sources import ship

    for record in options.records:
        print(ship(record, options.folder))


def _model_card(options: argparse.Namespace) -> None:
    from ditbench.config import load_config
    from ditbench.worlds.scenes.recipe.card import keep_results, write_card

    folders = options.results or [None] * len(options.config)
    if len(folders) != len(options.config):
        raise Fault(f"--results names {len(folders)} folders for the {len(options.config)} of --config")
    for path, results in zip(options.config, folders, strict=True):
        if not options.kept:
            keep_results(options.folder, load_config(path), results)
    write_card(options.folder)
