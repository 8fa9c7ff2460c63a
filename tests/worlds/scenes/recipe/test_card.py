"""The shipped weights, the code that claims to have made them, and the card that says how."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from ditbench.faults import Fault
from ditbench.worlds.scenes.recipe import export, judges
from ditbench.worlds.scenes.recipe.card import write_card

SHIPPED = Path(__file__).parents[4] / "assets" / "scenes"


def account(name: str) -> dict[str, Any]:
    body: dict[str, Any] = json.loads((SHIPPED / f"{name}.json").read_text())
    return body


def test_the_shipped_backbone_is_of_the_recipe_in_the_code() -> None:
    made = account("backbone")
    known = {made["recipe_hash"], made.get("code_since", {}).get("recipe_hash")}
    assert export.recipe_hash() in known, (
        "the recipe's code has changed: train anew (`snakemake assets`) or, where what it computes is the same, say in "
        "code_since of assets/scenes/backbone.json what changed and the new hash, and write the card again "
        "(`ditbench assets model-card --kept`); recipe_hash stays what the weights were made with"
    )


def test_the_shipped_mmdit_is_of_the_recipe_in_the_code() -> None:
    made = account("mmdit")
    known = {made["recipe_hash"], made.get("code_since", {}).get("recipe_hash")}
    assert export.recipe_hash(export.MMDIT_FILES) in known, "as of the backbone, in assets/scenes/mmdit.json"


def test_the_shipped_judges_are_of_the_recipe_in_the_code() -> None:
    assert judges.recipe_hash() == account("judges")["recipe_hash"], "train the judges anew (`snakemake assets`)"


def test_the_shipped_files_are_the_ones_of_which_the_accounts_tell() -> None:
    told = account("backbone")["sha256"] | account("mmdit")["sha256"]
    told |= {f"{name}.safetensors": account("judges")[name]["sha256"] for name in ("reader", "dual", "preference")}
    assert {path.name for path in SHIPPED.glob("*.safetensors")} == set(told)
    for name, digest in told.items():
        assert hashlib.sha256((SHIPPED / name).read_bytes()).hexdigest() == digest, name


@pytest.fixture
def copied(tmp_path: Path) -> Path:
    return Path(shutil.copytree(SHIPPED, tmp_path / "scenes"))


def test_the_shipped_card_is_what_the_records_beside_it_say(copied: Path) -> None:
    (copied / "README.md").unlink()
    write_card(copied)
    assert (copied / "README.md").read_text() == (SHIPPED / "README.md").read_text()


def test_a_card_says_how_the_weights_were_made_and_what_has_changed_since(copied: Path) -> None:
    made, judged = account("backbone"), account("judges")
    made["code_since"] = {"made_with": "abc1234", "recipe_hash": "f" * 16, "changes": "a comment"}
    (copied / "backbone.json").write_text(json.dumps(made))
    write_card(copied)
    card = (copied / "README.md").read_text()
    assert f"`{made['recipe_hash']}`, the code of commit `abc1234`" in card
    assert f"changed since, to `{'f' * 16}`, but not what it computes: a comment" in card
    for said in ("| seed | 0 |", "270,400", "| wall time | 1.7 h |", "AMD EPYC, 2 cores", "](samples.png)"):
        assert said in card
    assert f"recipe hash `{judged['recipe_hash']}`" in card and "| dual | 1 | 105,600 | 607 s |" in card
    # Which code drew and judged what the table of quality shows.
    drawn = account("quality")["arms"]["full"]["provenance"]
    assert f"commit `{drawn['git'][:12]}`, code hash `{drawn['code']}`" in card
    del made["code_since"]
    (copied / "backbone.json").write_text(json.dumps(made))
    write_card(copied)
    assert "changed since" not in (copied / "README.md").read_text()


@pytest.mark.parametrize("name", ["backbone.json", "mmdit.json", "judges.json", "quality.json"])
def test_a_card_without_its_records_names_the_one_that_is_missing(copied: Path, name: str) -> None:
    (copied / name).unlink()
    with pytest.raises(Fault, match=f"holds no {name} yet: run "):
        write_card(copied)
