"""What the page does in a browser: marks that show their arm, and two arms of a caption one over the other."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from ditbench.report.page import build_page
from ditbench.study import Study

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed")
PROBE = """
<script>
const found = {};
const mark = document.querySelector('svg .mark[data-arm="fora-n2"]');
mark.focus();
// A page without a window may be the active one or not: where it is not, the browser tells nobody of the focus.
if (!document.hasFocus()) mark.dispatchEvent(new FocusEvent("focus"));
const card = document.querySelector(".card");
found.card = { hidden: card.hidden, text: card.textContent, picture: !!card.querySelector("img") };
dispatchEvent(new KeyboardEvent("keydown", { key: "Escape" }));
found.escaped = card.hidden;
const compare = document.querySelector(".compare");
const [below, above] = compare.querySelectorAll(".stage img");
const state = () => [below.alt, above.alt, above.style.clipPath, compare.querySelector(".caption").textContent];
const press = (text) => [...compare.querySelectorAll("button")].find((b) => b.textContent === text).click();
found.start = state();
press("Flip"); found.flipped = state()[2];
press("Flip"); found.back = state()[2];
press("Previous caption"); found.before = state();
document.querySelector('.samples tbody tr img[data-arm="broken"]').click(); found.clicked = state();
document.body.append(Object.assign(document.createElement("pre"), { id: "found", textContent: JSON.stringify(found) }));
</script>
"""


def probed(page: str, folder: Path) -> dict:
    path = folder / "page.html"
    path.write_text(page.replace("</body>", PROBE + "</body>"), encoding="utf-8")
    words = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--no-first-run"]
    words += [f"--user-data-dir={folder / 'profile'}", "--window-size=1200,900", "--virtual-time-budget=3000"]
    done = subprocess.run(
        [str(CHROMIUM), *words, "--dump-dom", path.as_uri()], capture_output=True, text=True, timeout=120
    )
    match = re.search(r'<pre id="found">(.*?)</pre>', done.stdout, re.DOTALL)
    assert match, done.stdout[-500:] + done.stderr[-500:]
    return json.loads(match[1].replace("&amp;", "&").replace("&lt;", "<").replace("&gt;", ">"))


def test_marks_show_their_arm_and_pictures_can_be_flipped(embedded: Study, tree: Any, tmp_path: Path) -> None:
    found = probed(build_page([embedded], tree.read()), tmp_path)
    assert not found["card"]["hidden"] and found["card"]["picture"] and found["escaped"]
    assert found["card"]["text"].startswith("FORA, N = 2") and "FID/scenes" in found["card"]["text"]
    below, above, clip, caption = found["start"]
    assert below.startswith("full: ") and not above.startswith("full: ")
    assert clip == "inset(0px 0px 0px 50%)" and caption.startswith("1 of ")
    assert (found["flipped"], found["back"]) == ("inset(0px 0px 0px 0%)", "inset(0px 0px 0px 100%)")
    rows = int(caption.split(" of ")[1].split(":")[0])
    assert found["before"][3].startswith(f"{rows} of {rows}: ")
    assert found["clicked"][1].startswith("broken: ") and found["clicked"][3].startswith("1 of ")
