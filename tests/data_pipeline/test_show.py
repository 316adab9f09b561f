"""The page and the sheet that show a dataset: right counts, nothing from elsewhere, no text taken for markup."""

import base64
import io
import shutil
import sys
from collections import Counter
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from data_pipeline import features, overview, overview_page, records, show
from infu_jax.errors import InputError

VOID = {"meta", "img", "br"}


class Page(HTMLParser):
    """A page as a browser would see it: elements with their texts."""

    def __init__(self, text: str):
        super().__init__()
        self.open, self.elements = [], []
        self.feed(text)
        self.close()
        assert not self.open, f"{self.open} are not closed"

    def handle_starttag(self, tag, attrs):
        element = {"tag": tag, "text": "", **dict(attrs)}
        self.elements.append(element)
        if tag not in VOID:
            self.open.append(element)

    def handle_endtag(self, tag):
        assert self.open.pop()["tag"] == tag

    def handle_data(self, data):
        for element in self.open:
            element["text"] += data

    def all(self, tag, **wanted):
        return [e for e in self.elements if e["tag"] == tag and all(e.get(name) == value for name, value in wanted.items())]

    def table(self, number):
        """Rows of a table, each a list of texts."""
        rows, at = [], self.elements.index(self.all("table")[number])
        for element in self.elements[at + 1 :]:
            if element["tag"] == "tr":
                rows.append([])
            elif element["tag"] in ("td", "th"):
                rows[-1].append(element["text"])
            else:
                break
        return rows

    def chart(self, title):
        """Label -> count."""
        at = next(n for n, e in enumerate(self.elements) if e["tag"] == "h3" and e["text"].startswith(title))
        cells = []
        for element in self.elements[at + 1 :]:
            if element["tag"] == "h3" or element["tag"] == "h2":
                break
            if element["tag"] == "span" and "class" not in element:
                cells.append(element["text"])
        return dict(zip(cells[::2], map(int, cells[1::2])))


def run(*options):
    before, sys.argv = sys.argv, ["show", *map(str, options)]
    try:
        show.main()
    finally:
        sys.argv = before


BUCKETS = ("--resolution", "160", "--bucket-step", "32")


@pytest.fixture(scope="module")
def shown(pairs_dataset, tmp_path_factory):
    out = tmp_path_factory.mktemp("shown") / "page.html"
    run(pairs_dataset, "--out", out, *BUCKETS)
    return out.read_text(), Page(out.read_text())


@pytest.fixture(scope="module")
def stored(pairs_dataset):
    source = records.open_records(pairs_dataset, "train")
    return [source[n] for n in range(len(source))]


def test_counts(shown, stored):
    _, page = shown
    assert page.table(0) == [
        ["split", "pictures", "people", "captions", "synthetic", "with an identity photo"],
        ["train", "12", "3", "17", "3", "3"],
        ["validation", "2", "1", "3", "0", "1"],
    ]
    assert page.chart("Pictures of a person") == {"3": 1, "4": 1, "5": 1}
    assert page.chart("Captions of a picture") == Counter(str(len(record.captions)) for record in stored)
    assert page.chart("Sources of captions") == Counter(caption.source for record in stored for caption in record.captions)
    sizes = Counter(record.target_size for record in stored)
    assert page.chart("Aspect-ratio buckets") == {"160 x 160": sizes[160, 160], "128 x 192": sizes[216, 144], "192 x 128": sizes[152, 240]}
    assert page.chart("Score: detector") == {"0.9": 12}
    assert sum(page.chart("Score: sharpness").values()) == 12


def test_nothing_is_fetched_or_run(shown):
    text, page = shown
    assert not page.all("script") and not page.all("link") and not page.all("iframe")
    assert all(not name.startswith("on") for element in page.elements for name in element)
    images = page.all("img")
    assert len(images) == 4 * 12 and all(image["src"].startswith("data:image/jpeg;base64,") for image in images)
    assert "http://" not in text and "https://" not in text and "url(" not in text
    policy = page.all("meta", **{"http-equiv": "Content-Security-Policy"})[0]["content"]
    assert policy == "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


def test_texts_are_texts(shown, stored):
    """Captions that look like markup come out as they are."""
    _, page = shown
    told = Counter(element["text"] for element in page.all("p", **{"class": "caption"}))
    expected = Counter(f"{caption.source}{caption.text}" for record in stored for caption in record.captions)
    expected["no caption"] = sum(not record.captions for record in stored)
    assert told == expected and any("<script>" in text for text in told)


@pytest.mark.parametrize(
    "text, expected",
    [
        ("<img src=x onerror=1>", "&lt;img src=x onerror=1&gt;"),
        ("\"a\" & 'b'", "&quot;a&quot; &amp; &#x27;b&#x27;"),
        ("a\nb\tc", "a b c"),
        ("\x00\u202e\ud800", "\ufffd\ufffd\ufffd"),
        ("Zoë 女士 🙂", "Zoë 女士 🙂"),
    ],
)
def test_escaping(text, expected):
    assert overview_page._text(text) == expected
    expected.encode()


def test_pairs_are_those_of_training(pairs_dataset, shown, stored):
    """Identities: inline photos where there are any, or else another real picture of the person."""
    _, page = shown
    by_key = {record.key: record for record in stored}
    facts, captions = page.all("p", **{"class": "facts"}), [e["text"] for e in page.all("figcaption")]
    keys = [element["text"].split(" · ")[1] for element in facts]
    assert sorted(keys) == sorted(by_key)
    for key, said in zip(keys, captions[::4]):
        if by_key[key].identity:
            assert said == "identity: a photo in the record"
        else:
            giver = by_key[said.removeprefix("identity: picture ")]
            assert giver.person == by_key[key].person and giver.key != key and not giver.synthetic
    assert sum(" · synthetic" in element["text"] for element in facts) == 3


def test_pictures(pairs_dataset):
    """The third is what a batch holds, the fourth what is drawn for it; both of the bucket's shape."""
    found = overview.look(overview.Wanted(str(pairs_dataset), resolution=160, bucket_step=32, pairing="spss", pairs=3))
    assert len(found.pairs) == 3 and found.targets == 12
    for pair in found.pairs:
        height, width = pair.bucket
        for image in (pair.fitted, pair.control):
            assert image.shape == (overview.CELL, round(overview.CELL * width / height), 3) and image.dtype == np.uint8
        assert pair.control.max() > 200 and (pair.control.max(axis=2) == 0).mean() > 0.5
        assert pair.shown_by == "the same picture"
        stored_height, stored_width = pair.record.target_size
        assert pair.target.shape[:2] == (overview.CELL, round(overview.CELL * stored_width / stored_height))


def test_what_is_cut_off_is_dim():
    grey = np.full((100, 200, 3), 200, np.uint8)
    drawn = overview._drawn(grey, np.full((5, 2), 100.0, np.float32), np.array([90, 40, 110, 60], np.float32), (50, 0, 150, 100))
    scale = drawn.shape[0] / 100
    assert (drawn[:, : int(49 * scale)] == 70).all() and (drawn[:, int(151 * scale) :] == 70).all()
    assert (drawn[: int(30 * scale), int(51 * scale) : int(149 * scale)] == 200).all()


def test_sheet(pairs_dataset, tmp_path, capsys):
    run(pairs_dataset, "--out", tmp_path / "sheet.png", "--pairs", "2", *BUCKETS)
    with Image.open(tmp_path / "sheet.png") as picture:
        assert picture.format == "PNG" and picture.width == 4 * (overview.CELL + 12) + 12 and picture.height > 2 * overview.CELL / 2
    assert "2 of 12 spms pairs" in capsys.readouterr().out


def test_features_and_rejects_are_listed(pairs_dataset, tmp_path):
    dataset = shutil.copytree(pairs_dataset, tmp_path / "people <b>")
    groups = (features.Group("captions", 17, (4,), 17), features.Group("empty", 1, (4,), 1))
    plan = features.Plan("t5", "train", "x", 12, "y", {"t5_length": 7}, "float16", "float32", groups)
    folder = features.folder_of(dataset, "t5", "train")
    features.begin(folder, plan, np.arange(13))
    for group, number in plan.parts():
        features.write_part(folder, plan, group, number, np.zeros((group.rows, 4)))
    features.seal(folder, plan)
    (dataset / "report").mkdir()
    (dataset / "report" / "report.json").write_text('{"rejected": {"no_face": 3, "<i>": 1}}')
    page = Page(overview_page.page(overview.look(overview.Wanted(str(dataset), pairs=1))))
    assert page.table(1)[1] == ["t5", "train", "t5_length 7", "float16", "0.0 KiB", "18"]
    assert page.table(2)[1:] == [["no_face", "3", "no face was found"], ["<i>", "1", ""]]
    assert page.all("h1")[0]["text"] == "people <b>"
    (dataset / "report" / "report.json").write_text("[]")
    with pytest.raises(InputError, match="report.json is not the report of a build"):
        overview.look(overview.Wanted(str(dataset), pairs=1))


def test_many_values_share_bars():
    assert overview.ranges({1: 5, 2: 3}) == [("1", 5), ("2", 3)]
    assert overview.ranges({n: 1 for n in range(21)}) == [("0", 1), ("1", 1), ("2-3", 2), ("4-7", 4), ("8-15", 8), ("16-31", 5)]
    assert sum(count for _, count in overview_page._bins(np.random.default_rng(0).normal(size=100))) == 100


def test_existing_files_and_bad_options(pairs_dataset, tmp_path):
    out = tmp_path / "page.html"
    out.write_text("mine")
    for options, message in (
        (["--out", out], "page.html exists; choose another --out, or give --overwrite"),
        (["--out", tmp_path / "page.pdf"], "ends in .html or .png"),
        (["--out", tmp_path / "a.html", "--split", "test"], "has no split test; it has train, validation"),
        (["--out", tmp_path / "a.html", "--pairs", "0"], "--pairs is 0"),
        (["--out", tmp_path / "a.html", "--pairing", "spms", "--split", "validation", "--identities", "real", "--resolution", "8"], "data.resolution is 8"),
    ):
        with pytest.raises(InputError, match=message):
            run(pairs_dataset, *options)
    with pytest.raises(InputError, match="has no split train; it has none"):
        run(tmp_path, "--out", tmp_path / "a.html")
    assert out.read_text() == "mine" and [path.name for path in tmp_path.iterdir()] == ["page.html"]
    run(pairs_dataset, "--out", out, "--overwrite", "--pairs", "1", *BUCKETS)
    assert out.read_text().startswith("<!doctype html>")


def test_data_uris_are_pictures(shown):
    _, page = shown
    data = base64.b64decode(page.all("img")[0]["src"].partition(",")[2], validate=True)
    with Image.open(io.BytesIO(data)) as picture:
        assert picture.format == "JPEG" and picture.height == overview.CELL
