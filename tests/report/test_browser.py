"""The page in a real browser: no error, no request, tables that sort and filter, a gallery that shows its images."""

import base64
import hashlib
import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "results/reports/default/index.html"
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(
        CHROMIUM is None and os.environ.get("EIGENLOOM_REQUIRE_BROWSER") != "1",
        reason="no Chromium here; `.ci/browser` installs Debian's",
    ),
]
CLICKS = """
const table = document.querySelector("#methods table"), column = (i) =>
  [...table.tBodies[0].rows].filter((r) => !r.hidden).map((r) => r.cells[i].dataset.value ?? r.cells[i].textContent);
const head = [...table.tHead.rows[0].cells].findIndex((c) => c.textContent === "NMSE");
const button = table.tHead.rows[0].cells[head].querySelector("button");
const found = {before: column(head)};
button.click(); found.up = column(head); found.aria = table.tHead.rows[0].cells[head].getAttribute("aria-sort");
button.click(); found.down = column(head);
button.click(); found.after = column(head);
const field = document.querySelector("#methods input");
field.value = "pca dense"; field.dispatchEvent(new Event("input"));
found.filtered = column(2).map((name, i) => name + " " + column(3)[i]);
const tiles = [...document.querySelectorAll(".tile")];
found.tiles = tiles.length;
found.titles = tiles.filter((t) => /highest score .* at row \\d+, column \\d+/.test(t.title)).length;
document.body.innerHTML = ""; document.body.append(JSON.stringify(found));
"""


def browse(tmp_path: Path, page: Path, *words: str) -> tuple[str, str, set[str]]:
    """Open a file in a fresh browser; return what it prints, its complaints, and the hosts that it asked."""
    assert CHROMIUM is not None, "Chromium is not installed"
    log = tmp_path / "net.json"
    command = [
        CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--disable-dev-shm-usage",
        "--no-first-run", "--disable-background-networking", "--disable-component-update", "--disable-sync",
        f"--user-data-dir={tmp_path / 'profile'}", f"--log-net-log={log}", "--enable-logging=stderr", *words,
        page.as_uri(),
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    complaints = "\n".join(line for line in done.stderr.splitlines() if ":CONSOLE" in line)
    asked = set(re.findall(r'"url":"(?:https?|wss?|ftp)://([^/"]*)', log.read_text(encoding="utf-8", errors="replace")))
    return done.stdout, complaints, asked


def with_script(tmp_path: Path, script: str) -> Path:
    """Copy the page with one more script, which its policy is told to let run."""
    text = PAGE.read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    text = text.replace("script-src '", f"script-src 'sha256-{digest}' '", 1)
    copy = tmp_path / "page.html"
    copy.write_text(text.replace("</body>", f"<script>{script}</script></body>"), encoding="utf-8")
    return copy


@pytest.fixture(scope="module", autouse=True)
def _page():
    if not PAGE.is_file():
        pytest.skip("the report of the default experiment is not built")


def test_it_opens_without_an_error_or_a_request(tmp_path):
    text, complaints, asked = browse(tmp_path, PAGE, "--dump-dom")
    assert "</main>" in text
    assert complaints == ""
    blank = tmp_path / "blank.html"
    blank.write_text("<!doctype html><title>blank</title>", encoding="utf-8")
    own = browse(tmp_path, blank, "--dump-dom")[2]  # what the browser asks for itself
    assert not asked - own
    blank.write_text("<img src=http://elsewhere.example/x.png>", encoding="utf-8")
    assert browse(tmp_path, blank, "--dump-dom")[2] - own == {"elsewhere.example"}  # a request would have been seen
    assert PAGE.stat().st_size < 15_000_000


def test_a_foreign_script_does_not_run(tmp_path):
    copy = tmp_path / "page.html"
    text = PAGE.read_text(encoding="utf-8").replace("</body>", "<script>document.title = 'taken'</script></body>")
    copy.write_text(text, encoding="utf-8")
    shown, complaints, _ = browse(tmp_path, copy, "--dump-dom")
    assert "<title>taken" not in shown
    assert "Content Security Policy" in complaints


def test_tables_sort_and_filter_and_tiles_have_their_words(tmp_path):
    shown, complaints, _ = browse(tmp_path, with_script(tmp_path, CLICKS), "--dump-dom")
    assert complaints == ""
    found = json.loads(re.search(r"<body>(.*)</body>", shown, re.S)[1])
    numbers = [float(value) for value in found["before"]]
    assert [float(value) for value in found["up"]] == sorted(numbers)
    assert [float(value) for value in found["down"]] == sorted(numbers, reverse=True)
    assert found["aria"] == "ascending"
    assert found["after"] == found["before"]
    assert found["filtered"]
    assert all("pca" in name and "dense" in name for name in found["filtered"])
    assert found["tiles"] == found["titles"] > 100


@pytest.mark.parametrize(("width", "words"), [(1280, ()), (390, ())])
def test_it_is_not_wider_than_the_window_and_the_gallery_is_in_colour(tmp_path, width, words):
    script = """
document.documentElement.dataset.overflow = document.documentElement.scrollWidth - window.innerWidth;
for (const node of document.querySelectorAll("main > *"))
  if (node.id !== "gallery") node.hidden = true, node.style.display = "none";
"""
    copy = with_script(tmp_path, script)
    shot = tmp_path / "shot.png"
    browse(tmp_path, copy, f"--window-size={max(width, 500)},1500", f"--screenshot={shot}", *words)
    shown, _, _ = browse(tmp_path, copy, f"--window-size={max(width, 500)},1500", "--dump-dom")
    assert int(re.search(r'data-overflow="(-?\d+)"', shown)[1]) <= 0
    pixels = np.asarray(Image.open(shot).convert("RGB")).astype(int)
    coloured = (pixels.max(2) - pixels.min(2) > 60).sum()
    assert coloured > 20_000  # the open class's tiles: 6 bases, 4 images of 64 x 64
