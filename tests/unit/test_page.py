"""Report pages show the data as it is, run and load nothing, and are the same for the same data."""

import hashlib
import os
import re
import subprocess
import sys
import warnings
from html.parser import HTMLParser

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bgectl import page as pages
from bgectl.errors import UsageError
from bgectl.page import Case, Page, Passage, bin_edges, cut_text, escaped, shares, shortened, shown

HOSTILE = "\"'><script>x</script>&lt;"
VOID = {"meta", "br"}


class Element:
    """An element as a browser would have it: its name, attributes, elements inside and the text of all of them."""

    def __init__(self, tag, attributes):
        self.tag = tag
        self.attributes = dict(attributes)
        self.children = []

    @property
    def text(self):
        return "".join(child if isinstance(child, str) else child.text for child in self.children)

    def all(self, tag=None, look=None):
        for child in self.children:
            if isinstance(child, Element):
                if tag in {None, child.tag} and look in {None, child.attributes.get("class")}:
                    yield child
                yield from child.all(tag, look)

    def one(self, tag=None, look=None):
        (found,) = self.all(tag, look)
        return found


class Reader(HTMLParser):
    """Builds elements, and fails where tags do not match."""

    def __init__(self):
        super().__init__(convert_charrefs=True)
        self.open = [Element("root", [])]

    def handle_starttag(self, tag, attrs):
        assert len(dict(attrs)) == len(attrs), f"{tag} has an attribute twice"
        element = Element(tag, attrs)
        self.open[-1].children.append(element)
        if tag not in VOID:
            self.open.append(element)

    def handle_startendtag(self, tag, attrs):
        self.open[-1].children.append(Element(tag, attrs))

    def handle_endtag(self, tag):
        assert self.open.pop().tag == tag

    def handle_data(self, data):
        self.open[-1].children.append(data)


def read(page):
    """The page as elements; its text must be such as a file can hold."""
    reader = Reader()
    reader.feed(page.html().encode("utf-8").decode("utf-8"))
    reader.close()
    assert len(reader.open) == 1, "elements are left open"
    return reader.open[0]


def full(text):
    """A page of every kind of section, with `text` wherever text can be given."""
    page = Page(text, text)
    page.facts(text, {text: text})
    page.table(text, [text], [[text]], text)
    page.histogram(text, {text: [1.0, 2.5, np.nan], "b": [2.0]}, text, text)
    page.bars(text, {text: 3, "b": 1}, text, text)
    page.cases(text, [Case(text, [Passage(text, text, 0.5)], text)], text)
    return page


def points(element):
    """The corners of a path, (n, 2)."""
    return np.array([[float(x), float(y)] for x, y in re.findall(r"[ML] (\S+) (\S+)", element.attributes["d"])])


def test_markup_in_texts_is_shown_and_not_obeyed():
    plain, hostile = read(full("plain")), read(full(HOSTILE))
    assert [element.tag for element in hostile.all()] == [element.tag for element in plain.all()]
    names = [sorted(element.attributes) for element in plain.all()]
    assert [sorted(element.attributes) for element in hostile.all()] == names
    body = plain.one("body").text
    assert body.count("plain") > 20
    assert hostile.one("body").text == body.replace("plain", HOSTILE)
    assert hostile.one("title").text == HOSTILE
    labels = [svg.attributes["aria-label"] for svg in hostile.all("svg") if svg.attributes.get("role") == "img"]
    assert len(labels) == 2
    assert all(label.count(HOSTILE) == 2 for label in labels)


def test_pictures_show_texts_as_texts():
    texts = [element.text for element in read(full(HOSTILE)).all("text")]
    assert texts.count(HOSTILE) == 3, "the label of each picture and the name of a bar"


@pytest.mark.parametrize("text", ["$x^2$", "$a_b", r"\alpha", "#0b69c7", "fill: #0b69c7", 'style="fill: #0b69c7"'])
def test_pictures_take_no_text_for_a_formula_or_a_colour(text):
    assert [element.text for element in read(full(text)).all("text")].count(text) == 3


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("a\u2028b\u2029c\x85d", "a\u2028b\u2029c\x85d"),
        ("a\ud800b\udfff", "a\ufffdb\ufffd"),
        ("\x00a\x0bb\x1f\uffff", "\ufffda\ufffdb\ufffd\ufffd"),
        ("  a\n\t b  \n", "  a\n\t b  \n"),
        ("שלום \U0001f98a", "שלום \U0001f98a"),
    ],
)
def test_odd_characters(text, kept):
    root = read(full(text))
    assert root.one("h1").text == kept
    assert [element.text for element in root.one("article").all("div", "text")] == [kept, kept]
    assert [cell.text for cell in next(root.all("table", "facts")).all("td")] == [kept]


def test_unicode_line_separators_break_lines_in_texts_to_read():
    page = Page("t")
    page.cases("", [Case("a\u2028b\u2029c", [])])
    query = read(page).one("div", "text")
    assert [child if isinstance(child, str) else child.tag for child in query.children] == [
        "a\u2028", "br", "b\u2029", "br", "c",
    ]  # fmt: skip


@given(text=st.text(st.characters(), max_size=50))
def test_any_text_can_be_written(text):
    escaped(text).encode()
    assert not set('<>"') & set(escaped(text))


def test_nothing_is_loaded_or_run():
    content = full("text").html()
    assert not re.search(r"https?:|//[a-z]|@import|javascript:|data:", content)
    assert set(re.findall(r"url\((.)", content)) == {"#"}
    root = read(full("text"))
    assert not {element.tag for element in root.all()} & {"script", "link", "img", "iframe", "object", "base"}
    for element in root.all():
        for name, value in element.attributes.items():
            assert not name.startswith("on")
            assert name != "src"
            assert "href" not in name or value.startswith("#")
    (policy,) = (
        element.attributes["content"] for element in root.all("meta") if "http-equiv" in element.attributes
    )  # fmt: skip
    assert policy.startswith("default-src 'none'")


def test_ids_are_unique_and_found():
    page = full("a")
    page.histogram("again", {"a": [1.0, 2.5]}, "a")
    page.histogram("and again", {"a": [1.0, 2.5]}, "a")
    ids = [element.attributes["id"] for element in read(page).all() if "id" in element.attributes]
    assert len(ids) == len(set(ids)) > 40
    named = re.findall(r'href="#([^"]*)"|url\(#([^)]*)\)', page.html())
    assert named
    assert {one or other for one, other in named} <= set(ids)


def test_pictures_follow_the_look_of_the_page():
    content = full("a").html()
    style, body = content.split("</style>", 1)
    assert not re.search(r"#[0-9a-f]{3,6}\b", body), "a colour that is the same on light and dark"
    used = set(re.findall(r"var\(--([^)]*)\)", content))
    assert {"ink", "card", "group-1", "group-2"} <= used
    light, dark = (set(re.findall(r"--([\w-]+):", part)) for part in style.split("prefers-color-scheme: dark"))
    assert used <= light == dark


def test_same_data_same_bytes_whatever_the_settings():
    import matplotlib

    first = full("中文 $x$").html()
    own = {"svg.fonttype": "path", "font.size": 30.0, "xtick.minor.visible": True, "svg.hashsalt": "z"}
    with matplotlib.rc_context(own):
        assert full("中文 $x$").html() == first
        assert matplotlib.rcParams["font.size"] == 30.0, "the user's settings are changed"


def test_another_process_writes_the_same_and_loads_no_pyplot():
    code = """
import hashlib, sys
from bgectl.page import Page
page = Page("a", "b")
page.facts("f", {"a": 1})
assert "matplotlib" not in sys.modules
page.histogram("h", {"a": [1.0, 2.5], "b": [2.0]}, "x")
page.bars("b", {"a": 3, "b": 1}, "x")
assert "matplotlib.pyplot" not in sys.modules
print(hashlib.sha256(page.html().encode()).hexdigest())
"""
    page = Page("a", "b")
    page.facts("f", {"a": 1})
    page.histogram("h", {"a": [1.0, 2.5], "b": [2.0]}, "x")
    page.bars("b", {"a": 3, "b": 1}, "x")
    environment = {**os.environ, "PYTHONHASHSEED": "7", "SOURCE_DATE_EPOCH": "1"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == hashlib.sha256(page.html().encode()).hexdigest()


def test_scripts_without_a_font_here_give_no_warning():
    page = Page("t")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        page.bars("", {"中文": 1, "한국어": 2}, "数")
    assert {"中文", "한국어", "数"} <= {element.text for element in read(page).all("text")}


def test_write_leaves_the_page_alone(tmp_path):
    page = full("ü\ud800")
    page.write(tmp_path / "page.html")
    page.write(tmp_path / "page.html")
    assert os.listdir(tmp_path) == ["page.html"]
    assert (tmp_path / "page.html").read_bytes().decode("utf-8") == page.html()
    with pytest.raises(UsageError):
        page.write(tmp_path / "none" / "page.html")


@pytest.mark.parametrize(
    ("values", "edges", "percent"),
    [
        ([0, 1, 1, 3], [-0.5, 0.5, 1.5, 2.5, 3.5], [25, 50, 0, 25]),
        ([7, 7], [6.5, 7.5], [100]),
        ([0.25, 0.5, 2.25], np.arange(0.25, 2.5, 0.25), [100 / 3, 100 / 3, 0, 0, 0, 0, 0, 100 / 3]),
        # Of 100 whole numbers each bin holds 10, though a tenth of 99 is none.
        (range(100), np.arange(-0.5, 100, 10), [10] * 10),
        ([-1.5], np.linspace(-2.25, -0.75, 9), [0, 0, 0, 0, 100, 0, 0, 0]),
    ],
)
def test_bins(values, edges, percent):
    array = np.asarray(values, dtype=np.float64)
    np.testing.assert_allclose(bin_edges(array), edges)
    np.testing.assert_allclose(shares(array, bin_edges(array)), percent)


@given(st.lists(st.floats(-1e30, 1e30) | st.integers(-1000, 1000).map(float), min_size=1, max_size=200))
def test_every_value_is_in_a_bin(values):
    array = np.asarray(values)
    edges = bin_edges(array)
    assert edges[0] <= array.min() <= array.max() <= edges[-1]
    assert len(edges) <= pages.MOST_BINS + 1
    assert shares(array, edges).sum() == pytest.approx(100)
    np.testing.assert_allclose(np.diff(edges), (edges[-1] - edges[0]) / (len(edges) - 1), atol=abs(array).max() * 1e-12)


def test_histogram_draws_the_shares_over_common_bins():
    page = Page("t")
    groups = {"few": [0, 1, 1, 1], "many": [2] * 30 + [3] * 10, "none": [], "lost": [np.nan, None, np.inf]}
    groups["some"] = [1, np.nan, 1, -np.inf]
    page.histogram("", groups, "x")
    root = read(page)
    legend = [" ".join(entry.text.split()) for entry in root.one("ul", "legend").all("li")]
    assert legend == ["few (4 values)", "many (40 values)", "some (2 values, 2 not finite and left out)"]
    areas = [points(path) for path in root.one("figure").all("path") if "opacity: 0.22" in path.attributes["style"]]
    # Bins of 0, 1, 2 and 3: up at each first corner, and the last corner at the base.
    heights = [area[0, 1] - area[1:-1:2, 1] for area in areas if len(area) > 4]
    full_height = heights[2][1]
    for height, percent in zip(heights, ([25, 75, 0, 0], [0, 0, 75, 25], [0, 100, 0, 0]), strict=True):
        np.testing.assert_allclose(height / full_height * 100, percent, atol=1e-3)
    assert len({tuple(area[:, 0]) for area in areas if len(area) > 4}) == 1
    (label,) = (svg.attributes["aria-label"] for svg in root.all("svg") if svg.attributes.get("role") == "img")
    assert label.startswith("Histogram of x: few, 4 from 0 to 1, median 1; many, 40 from 2 to 3, median 2;")


def test_colours_of_the_legend_are_those_of_the_picture():
    page = Page("t")
    page.histogram("", {str(number): [number, number + 0.5] for number in range(8)}, "x")
    figure = read(page).one("figure")
    strokes = [
        (re.search(r"stroke: (var\S+?)[;\"]", style)[1], _dashes(style))
        for path in figure.all("path")
        if "stroke-width: 1.6" in (style := path.attributes.get("style", "") + ";")
    ]
    assert len(strokes) == 16
    assert strokes[:8] == strokes[8:]
    assert len(set(strokes)) == 8, "two groups look alike"
    fills = [
        re.search(r"fill: (var\S+?);", element.attributes["style"])[1]
        for element in figure.all()
        if "opacity: 0.22" in element.attributes.get("style", "")
    ]
    assert fills == [colour for colour, _ in strokes]


def _dashes(style):
    found = re.search(r"stroke-dasharray: ([\d., ]+)", style)
    return tuple(float(length) for length in re.split(r"[, ]+", found[1].strip())) if found else ()


@pytest.mark.parametrize(
    "add",
    [
        lambda page: page.histogram("", {"a": [], "b": [np.nan]}, "x", "why"),
        lambda page: page.histogram("", {}, "x", "why"),
        lambda page: page.bars("", {}, "x", "why"),
        lambda page: page.table("", ["a"], [], "why"),
        lambda page: page.cases("", [], "why"),
    ],
)
def test_nothing_to_show_is_said(add):
    page = Page("t")
    add(page)
    section = read(page).one("section")
    assert [element.text for element in section.all("p")].count("nothing to show") == 1
    assert "why" in {element.text for element in section.all("p", "note")}
    assert not list(section.all("svg"))


def test_bars_are_as_long_as_their_values():
    page = Page("t")
    page.bars("", {"a": 1200, "b": 300, "c": 0, "d": -600, "e": float("nan")}, "rows")
    figure = read(page).one("figure")
    bars = [points(path) for path in figure.all("path") if "fill: var(--group-1)" in path.attributes.get("style", "")]
    widths = np.array([bar[1, 0] - bar[0, 0] for bar in bars])
    np.testing.assert_allclose(widths / widths[0], [1, 0.25, 0, -0.5, 0], atol=1e-4)
    assert np.all(np.diff([bar[0, 1] for bar in bars]) > 0), "not from top to bottom"
    assert {"1,200", "300", "0", "-600", "nan", "a", "b", "c", "d", "e"} <= {text.text for text in figure.all("text")}
    assert figure.one("svg").attributes["aria-label"] == "Bars, rows: a 1,200, b 300, c 0, d -600, e nan"


def test_long_names_of_bars_are_found_in_full():
    names = ["data/" + "x" * 100 + "1.jsonl", "data/" + "x" * 100 + "2.jsonl", "中" * 40]
    page = Page("t")
    page.bars("", dict.fromkeys(names, 1), "rows")
    root = read(page)
    drawn = [text.text for text in root.one("figure").all("text")]
    assert [name for name in drawn if "…" in name] == [shortened(name, pages.LONGEST_NAME) for name in names]
    assert [row.text for row in root.one("details").all("tr")][1:] == [f"{name}1" for name in names]


@given(text=st.text(st.characters(codec="utf-8")), columns=st.integers(8, 40))
def test_shortened_fits(text, columns):
    short = shortened(text, columns)
    assert sum(map(pages._columns, short)) <= columns
    assert "\n" not in short
    if "…" in short and "…" not in text:
        start, end = short.split("…")
        whole = " ".join(pages.cleaned(text).split())
        assert whole.startswith(start)
        assert whole.endswith(end)
        assert len(start) + len(end) < len(whole)


def test_columns_of_numbers_are_flush_right():
    page = Page("t")
    rows = [["a", 1200, "3%", None, "-", True], ["7", 0.12345, "1,000.5", np.float32(2.5), np.int64(3), False]]
    page.table("", ["text", "n", "told", "some", "few", "flag"], rows)
    table = read(page).one("table")
    assert [head.attributes.get("class") for head in table.all("th")] == [None, *["number"] * 4, None]
    assert [cell.text for cell in table.all("td")] == [
        "a", "1,200", "3%", "–", "-", "yes", "7", "0.1235", "1,000.5", "2.5", "3", "no",
    ]  # fmt: skip
    assert [cell.text for cell in table.all("td", "number")] == [
        "1,200",
        "3%",
        "–",
        "-",
        "0.1235",
        "1,000.5",
        "2.5",
        "3",
    ]


@pytest.mark.parametrize("rows", [[["a"]], [["a", "b", "c"]], [["a", "b"], ["a"]]])
def test_ragged_tables_are_refused(rows):
    with pytest.raises(ValueError):
        Page("t").table("", ["x", "y"], rows)


@pytest.mark.parametrize(
    ("value", "text"),
    [(1234567, "1,234,567"), (0.123456, "0.1235"), (12345.6, "12,346"), (1e-7, "1e-07"), (1e20, "1e+20"),
     (float("inf"), "inf"), (np.int32(1000), "1,000"), (np.bool_(False), "no"), (None, "–"), ("1000", "1000")],
)  # fmt: skip
def test_values_for_people(value, text):
    assert shown(value) == text


def test_cases_in_order_with_the_rest_of_long_texts_to_open():
    long = "word  " * 200
    page = Page("t")
    page.cases("", [Case("q", [Passage("positive", "p\n  p", 0.75), Passage("hard negative", long), Passage("x", "")])])
    page.cases("", [Case("other", [])], "note")
    first, second = read(page).all("article")
    assert [term.text.split() for term in first.all("dt")] == [
        ["query"],
        ["positive", "0.75"],
        ["hard", "negative"],
        ["x"],
    ]
    looks = [group.attributes["class"] for group in first.one("dl").children if isinstance(group, Element)]
    assert looks == ["query", "positive", "negative", "other"]
    query, positive, negative, empty = first.all("dd")
    assert [query.text, positive.text, empty.text] == ["q", "p\n  p", "(empty)"]
    details = negative.one("details")
    rest = details.one("div").text
    shown_first = negative.text.removesuffix(details.text)
    assert shown_first.removesuffix("…") + rest == long
    assert shown_first.endswith("word  …")
    assert details.one("summary").text == f"{len(rest):,} more characters"
    assert not list(second.all("details"))


@given(piece=st.text(st.characters(), min_size=1, max_size=80), times=st.integers(1, 900))
def test_cut_texts_lose_nothing(piece, times):
    text = piece * times
    first, rest = cut_text(text)
    assert first + rest == text
    assert bool(rest) <= (len(text) > pages.LONGEST_TEXT)
    assert len(first) > min(len(text), pages.LONGEST_TEXT) - 60


def test_where_texts_are_cut():
    assert cut_text("x" * 600) == ("x" * 600, "")
    assert cut_text("x" * 601) == ("x" * 600, "x")
    assert cut_text("x" * 590 + " " + "y" * 100) == ("x" * 590 + " ", "y" * 100)
    assert cut_text("x" * 100 + " " + "y" * 600) == ("x" * 100 + " " + "y" * 499, "y" * 101)
    assert cut_text("x" * 599 + "e\u0301" + "y" * 9) == ("x" * 599 + "e\u0301", "y" * 9)
