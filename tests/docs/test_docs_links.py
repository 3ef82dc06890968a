"""Links between the pages, and the site that `make docs` builds of them."""

import re
import subprocess
import sys

import pytest
import shown
import yaml

LINK = re.compile(r"(?<!!)\[[^\]]*\]\(([^)\s]+)\)")
PICTURE = re.compile(r"!\[[^\]]*\]\(([^)\s]+)\)")
BLOCK = re.compile(r"^ *(`{3,}).*?^ *\1 *$", re.MULTILINE | re.DOTALL)
PAGES = [*shown.pages(), "docs/cli.md", "benchmarks/README.md"]


def text_of(path):
    """A page without its blocks of code and code in lines."""
    text = BLOCK.sub("", path.read_text(encoding="utf-8"))
    return re.sub(r"`[^`\n]*`", lambda code: code[0].replace("[", " ").replace("(", " "), text)


def anchors(path):
    """The names of a page's headings, those of included pages too, as mkdocs makes them."""
    text = BLOCK.sub("", path.read_text(encoding="utf-8"))
    for included in re.findall(r'^--8<-- "([^":]+)', text, re.MULTILINE):
        text += BLOCK.sub("", (shown.ROOT / included).read_text(encoding="utf-8"))
    headings = re.findall(r"^#{1,6} +(.+?) *$", text, re.MULTILINE)
    return {re.sub(r"[\s-]+", "-", re.sub(r"[^\w\s-]", "", heading).strip().lower()) for heading in headings}


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page):
    path = shown.ROOT / page
    text = text_of(path)
    for target in [*LINK.findall(text), *PICTURE.findall(text)]:
        if re.match(r"\w+:", target):
            continue
        file, _, anchor = target.partition("#")
        there = (path.parent / file).resolve() if file else path
        assert there.exists(), f"{page}: {target}"
        if anchor:
            assert anchor in anchors(there), f"{page}: {target}"


def test_every_page_is_in_the_navigation():
    listed = set(re.findall(r"[\w/-]+\.md", str(yaml.safe_load((shown.ROOT / "mkdocs.yml").read_text())["nav"])))
    there = {str(path.relative_to(shown.ROOT / "docs")) for path in (shown.ROOT / "docs").rglob("*.md")}
    assert listed == there


def test_formulas_and_sources_name_files_that_exist():
    """The pages say which file computes what."""
    named = 0
    for page in shown.pages():
        for file in re.findall(r"`(src/[\w./]+)`", (shown.ROOT / page).read_text(encoding="utf-8")):
            named += 1
            assert (shown.ROOT / file).is_file(), f"{page}: {file}"
    assert named > 10


@pytest.mark.slow
def test_the_site_is_built_and_needs_no_network(tmp_path):
    pytest.importorskip("mkdocs")
    words = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path / "site")]
    done = subprocess.run(words, cwd=shown.ROOT, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    site = tmp_path / "site"
    assert (site / "index.html").is_file()
    assert (site / "m3.png").is_file(), "the picture of the benchmarks"
    loaded = re.compile(r"<(?:script|img|iframe|source)[^>]*\ssrc=\"(\w+:)?//|<link[^>]*\shref=\"(\w+:)?//")
    for page in site.rglob("*.html"):
        found = loaded.search(page.read_text(encoding="utf-8"))
        assert found is None, f"{page.relative_to(site)}: {found}"
    for style in site.rglob("*.css"):
        assert not re.search(r"url\(['\"]?(https?:)?//", style.read_text(encoding="utf-8")), style
