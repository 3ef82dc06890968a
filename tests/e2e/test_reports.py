"""Pages of HTML as a browser shows them: no errors, nothing loaded, pictures that can be seen; and what eval's says."""

import html
import shutil
import subprocess

import pytest

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
COLOURS = [(0x0B, 0x69, 0xC7), (0xC2, 0x41, 0x0C)]
"""Of the first two groups of a picture, on a light page."""


def browse(page, folder, *, width):
    """Open a page without a network; returns what the console said and the picture of the page."""
    from PIL import Image

    picture = folder / f"{width}.png"
    done = subprocess.run(
        [BROWSER, "--headless=new", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr", "--hide-scrollbars",
         "--host-resolver-rules=MAP * ~NOTFOUND", f"--user-data-dir={folder / 'profile'}",
         f"--window-size={width},6000", f"--screenshot={picture}", page.as_uri()],
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert picture.is_file(), done.stderr[-2000:]
    console = [line for line in done.stderr.splitlines() if "CONSOLE" in line or "net_error" in line]
    return console, Image.open(picture).convert("RGB")


@pytest.fixture
def evaluated(inside, tiny_bert, tiny_xlmr, toy_rows, write_rows, tmp_path):
    """The page of an evaluation of two models."""
    rows = toy_rows(16)
    rows[0]["pos"] = ["ban <script>alert(1)</script> ruban a"]
    done = inside(
        "eval", tiny_bert, tiny_xlmr, "--data", write_rows(rows), "--devices", "cpu", "--report",
        tmp_path / "eval.html", "--output", tmp_path / "eval.json",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return tmp_path / "eval.html"


def test_the_page_of_an_evaluation_has_the_queries_to_read(evaluated, tmp_path):
    import json

    text = evaluated.read_text(encoding="utf-8")
    told = json.loads((tmp_path / "eval.json").read_text())
    before, after = (model["per_query"]["nDCG@10"] for model in told["models"])
    won = [number for number, (one, other) in enumerate(zip(before, after, strict=True)) if other > one + 1e-9]
    lost = [number for number, (one, other) in enumerate(zip(before, after, strict=True)) if other < one - 1e-9]
    assert won
    assert lost
    for name, queries in (("Won", won), ("Lost", lost)):
        section = text[text.index(f"<h2>{name}: ") :].split("</section>")[0]
        assert section.count("<article>") == min(15, len(queries))
        best = max(queries, key=lambda number: abs(after[number] - before[number]))
        assert f"{before[best]:.3f} before, {after[best]:.3f} after" in section
    assert "<script>" not in text
    assert "positive, rank " in text


@pytest.mark.skipif(BROWSER is None, reason="no Chromium here")
@pytest.mark.parametrize("width", [1000, 420])
def test_a_browser_shows_it(evaluated, tmp_path, width):
    console, picture = browse(evaluated, tmp_path, width=width)
    assert console == []
    counts = dict.fromkeys(COLOURS, 0)
    for count, colour in picture.getcolors(1 << 24):
        if colour in counts:
            counts[colour] += count
    assert min(counts.values()) > 200, "both groups of the histogram are drawn"


@pytest.mark.skipif(BROWSER is None, reason="no Chromium here")
def test_a_page_with_others_in_it(evaluated, tmp_path):
    """Ids of pictures stay apart: else clips and markers of one would be those of another."""
    from bgectl.page import Page

    page = Page("All", "Two evaluations & curves")
    page.heading("Training", "a < b")
    page.lines("Loss", {"all": [(1, 2.0), (2, 1.5), (3, float("nan"))], "dense": [(1, 1.0), (3, 0.5)]}, "step", "loss")
    page.include(evaluated)
    page.include(evaluated)
    page.write(tmp_path / "all.html")
    text = (tmp_path / "all.html").read_text(encoding="utf-8")
    ids = [part.split('"')[0] for part in text.split(' id="')[1:]]
    assert len(ids) == len(set(ids))
    for reference in (part.split('"')[0] for part in text.split('href="#')[1:]):
        assert html.unescape(reference) in ids
    console, picture = browse(tmp_path / "all.html", tmp_path, width=1000)
    assert console == []
    colours = {colour: count for count, colour in picture.getcolors(1 << 24)}
    assert min(colours.get(colour, 0) for colour in COLOURS) > 400


def test_what_is_no_page_is_not_included(tmp_path):
    from bgectl.errors import RunError
    from bgectl.page import Page

    (tmp_path / "other.html").write_text("<p>hello</p>")
    with pytest.raises(RunError, match="no page"):
        Page("All").include(tmp_path / "other.html")
