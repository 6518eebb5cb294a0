import re
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest

from prefilter_common.articles import Article, labels_of
from prefilter_common.evaluation.report.page import _money, write_page
from prefilter_common.evaluation.report.plots import Axes, near_one
from prefilter_common.evaluation.results import choice_of, compare_models
from prefilter_common.evaluation.run import Data, Options
from prefilter_common.evaluation.sections import Scored, model_row
from prefilter_common.scoring.engines.interface import REFERENCE

pytestmark = pytest.mark.slow

EVIL = "<script>alert(1)</script>\"onload='x' \x00\u202e</svg></style>"
VOID = {"meta", "br", "img", "input", "hr", "link"}


class Checker(HTMLParser):
    """Collects what is in the page; fails on tags that do not nest."""

    def __init__(self):
        super().__init__()
        self.open, self.tags, self.attributes, self.text, self.headings = [], [], [], [], []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs
        if re.fullmatch(r"h\d", tag):
            self.headings.append(int(tag[1]))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


def articles(n, text="text", language="en"):
    return [Article(f"{text} {i}", f"{text} number {i}", i % 2, f"{text}-{i}", language, text) for i in range(n)]


def scored(labels, traffic, seed):
    rng = np.random.default_rng(seed)
    scores = np.clip(labels * 0.6 + 0.2 + rng.normal(0, 0.25, len(labels)), 0, 1)
    flags = None if traffic is None else rng.random(len(traffic))
    points = {"default": 0.5, "best_f1": 0.55, "high_precision": 0.8}
    return Scored(scores, rng.integers(10, 400, len(labels)), 256, 1.3, points, flags)


def evaluation(names, broken=(), text="text", language="en", traffic=True, train=True):
    """What evaluate_models.py hands to the page, from made-up scores."""
    test = articles(60, text, language)
    data = Data(test, articles(40, text) if train else None, None, articles(50, text, language) if traffic else None)
    models = {name: scored(labels_of(test), data.traffic, seed) for seed, name in enumerate(names)}
    rows = {name: {**model_row(test, model, 0), **LATENCY} for name, model in models.items()}
    rows |= {name: {"error": f"OSError: no weights in {name}"} for name in broken}
    options = Options(evaluation.output, REFERENCE, 32, 5, 0.95, None, 0)
    return {"_run": provenance(text), "_manifest": None, **compare_models(data, models, rows, options)}


LATENCY = {"avg_inference_ms": 12.0, "device": "cpu", "cpu_benchmark_ms": None, "latency_articles": 5}


def provenance(text):
    return {
        "command": f"python evaluate_models.py --models {text}",
        "commit": None,
        "finished": "2026-01-01T00:00:00+00:00",
        "data": {"test": {"file": text, "sha256": "0" * 64, "rows": 60}},
        "hardware": {"cpu": text, "gpu": None},
        "versions": {"python": "3.11"},
    }


@pytest.fixture
def page(tmp_path):
    """Writes the page of an evaluation and returns its text and what a parser sees in it."""

    def write(data):
        write_page(tmp_path / "report.html", data)
        html = (tmp_path / "report.html").read_text(encoding="utf-8")
        checker = Checker()
        checker.feed(html)
        assert checker.open == []
        return html, checker

    return write


@pytest.fixture(autouse=True)
def review_queues(tmp_path, monkeypatch):
    for name in ("write_json_lines", "require_unlabelled"):  # no file may have such a name
        monkeypatch.setattr(f"prefilter_common.evaluation.results.{name}", lambda *args: None)
    monkeypatch.setattr(evaluation, "output", tmp_path, raising=False)


def test_a_share_of_commerce_from_two_sources_is_two_groups(page):
    data = evaluation(["a"], traffic=False)
    panel = data["_production"]["models"]["a"]["panel"]
    panel += [{**row, "source": "found by the audit"} for row in panel]
    groups = [text for text in page(data)[1].text if text.startswith("5.0% commerce, ")]
    assert groups == ["5.0% commerce, assumed", "5.0% commerce, found by the audit"]


@pytest.mark.parametrize(
    "case",
    [
        {"names": ["a", "b"], "broken": ["c"]},
        {"names": ["a"]},
        {"names": ["a"], "traffic": False, "train": False},
        {"names": [], "broken": ["c"]},
        {"names": list("abcdefghi")},
    ],
)
def test_the_page_is_whole_with_whatever_there_is(page, case):
    data = evaluation(**case)
    html, seen = page(data)
    text = " ".join(seen.text)
    assert data["_choice"]["reason"] in text
    assert all(row["verdict"] in text for row in data["_comparison"]["models"].values())
    assert all(f"OSError: no weights in {name}" in text for name in case.get("broken", ()))
    ids = [value for key, value in seen.attributes if key == "id"]
    assert len(ids) == len(set(ids))
    targets = [value for key, value in seen.attributes if key in ("href", "aria-labelledby")]
    assert {target.removeprefix("#") for target in targets} <= set(ids)
    assert ("Traffic" in seen.text) == bool(case["names"] and case.get("traffic", True))
    assert len(html) < 1_000_000


def test_headings_descend_one_level_at_a_time_and_pictures_have_words(page):
    _, seen = page(evaluation(["a", "b"]))
    assert seen.headings.count(1) == 1
    assert all(after - before <= 1 for before, after in zip(seen.headings, seen.headings[1:], strict=False))
    attributes = dict(seen.attributes)
    assert attributes["lang"] and attributes["name"]
    described = seen.attributes.count(("role", "img"))
    assert seen.tags.count("svg") == described + seen.attributes.count(("aria-hidden", "true"))
    assert seen.tags.count("figcaption") == described


def test_an_amount_may_be_a_fraction_of_a_cent():
    amounts = (0.0004, 0.25, 0, 1234.5, -42.28)
    assert [_money(amount) for amount in amounts] == ["0.0004", "0.25", "0.00", "1,234.50", "−42.28"]


def test_nothing_is_fetched_and_no_script_may_run(page):
    html, seen = page(evaluation(["a", "b"]))
    assert not {"script", "img", "link", "iframe", "object"} & set(seen.tags)
    assert not {"src", "style", "xlink:href"} & {key for key, _ in seen.attributes}
    assert "url(" not in html and "@import" not in html and "default-src 'none'" in html


def test_hostile_texts_stay_text(page):
    harmless = page(evaluation(["a", "b"], broken=["c"]))[1]
    names = [f"{EVIL}{i}" for i in range(3)]
    data = evaluation(names[:2], broken=names[2:], text=EVIL, language=EVIL)
    data["_worst_errors"][names[0]][0]["title"] += "\ud800"  # half of a UTF-16 pair cannot be written as UTF-8
    html, seen = page(data)
    assert "<script" not in html and '"onload' not in html and not {"\x00", "\u202e"} & set(html)
    assert seen.tags.count("style") == harmless.tags.count("style") and "script" not in seen.tags
    assert {key for key, _ in seen.attributes} <= {key for key, _ in harmless.attributes}
    assert "<script>alert(1)</script>\"onload='x'" in "".join(seen.text)


def test_the_same_data_gives_the_same_page(page):
    assert page(evaluation(["a", "b"]))[0] == page(evaluation(["a", "b"]))[0]


def test_many_models_tell_all_only_of_the_chosen_ones_traffic(page):
    html, _ = page(evaluation(list("abcd")))
    assert html.count("By language and length") == 3 * 3  # pairs with the best model, times operating points
    assert html.count("are in evaluation_results.json") == 3


def test_the_three_states_of_a_criterion_are_told_apart(page):
    """Shown, not shown and missed, by figures that lie above with and without their interval, and below."""
    data = evaluation(["good", "lucky", "poor"])
    figures = {"good": (0.97, 0.92), "lucky": (0.92, 0.85), "poor": (0.8, 0.7)}
    for name, (value, low) in figures.items():
        points = data["models"][name]["operating_points"]["default"]
        for key in ("f1", "precision", "recall"):
            points[key], points["intervals"][key] = value, [low, 0.99]
    html, _ = page({**data, "_choice": choice_of(data)})
    table = html.split('aria-label="Success criteria"')[1].split("</table>")[0]
    cells = {name: table.split(f'<bdi class="name">{name}</bdi>')[1].split("</tr>")[0] for name in figures}
    assert "✓ minimum shown" in cells["good"] and "not shown" not in cells["good"] and "✗" not in cells["good"]
    assert cells["lucky"].count("minimum, not shown") == 2  # the minimum for recall is lower, and shown
    assert cells["poor"].count("✗ below minimum") == 3 and "✓" not in cells["poor"]


def test_slices_without_commerce_have_no_recall_of_zero(page):
    data = evaluation(["a"])
    part = next(row for row in data["models"]["a"]["slices"] if row["by"] == "language")
    part |= {"n_commerce": 0, "confusion_matrix": [[60, 0], [0, 0]], "f1": 0.0, "recall": 0.0, "precision": 0.0}
    html, _ = page(data)
    row = html.split("By language</th></tr>")[1].split("</tr>")[0]
    cells = re.findall(r'<td class="n">(.*?)</td>', row)
    assert cells[1] == "0" and cells[4:7] == ["–", "–", "–"]  # F1, precision, recall


@pytest.mark.parametrize(
    ("wrong", "languages", "words"),
    [
        ((), ["en"] * 30 + ["el"] * 30, "no errors"),
        ((59,), ["en"] * 55 + ["el"] * 5, "no errors in the slices that are large enough to judge"),
        ((59,), ["en"] * 60, "no slice is large enough to judge"),
    ],
)
def test_a_slice_without_errors_is_not_one_too_small_to_judge(page, wrong, languages, words):
    test = [Article("title", f"text number {i:02}", i % 2, f"{i}", language) for i, language in enumerate(languages)]
    scores = labels_of(test) * 0.8 + 0.1
    scores[list(wrong)] = 1 - scores[list(wrong)]
    data = evaluation(["a"])
    data["models"]["a"] |= model_row(test, Scored(scores, np.full(60, 10), 256, 1.0, {"default": 0.5}), 0)
    assert f'<b><bdi class="name">a</bdi></b>: {words}</summary>' in page(data)[0]


def test_why_there_is_no_high_precision_threshold_is_said_once(page):
    """Without validation articles it is not that they show none: the warnings tell the two apart."""
    test = articles(60)
    models = {"a": replace(scored(labels_of(test), None, 0), thresholds={"default": 0.5})}
    rows = {"a": {**model_row(test, models["a"], 0), **LATENCY}}
    options = Options(evaluation.output, REFERENCE, 32, 5, 0.95, None, 0)
    data = {
        "_run": provenance("t"),
        "_manifest": None,
        **compare_models(Data(test, None, None, None), models, rows, options),
    }
    html, _ = page(data)
    assert "only the default threshold for a: no validation scores" in html
    (caution,) = re.findall(r">(No high-precision threshold.*?)</p>", html)
    assert re.sub("<.*?>", "", caution) == "No high-precision threshold for a (see Warnings)."


def test_the_copies_counted_are_test_articles(page):
    data = evaluation(["a"])
    data["_integrity"] |= {"n_train": 20, "n_test": 60, "n_exact": 20, "n_near": 40, "n_contained": 0}
    text = " ".join("".join(page(data)[1].text).split())
    assert "Of the 60 test articles, found among the 20 training articles: 20 exactly, 40 nearly, 0 in part." in text
    assert "are not found" not in text


def test_every_line_has_its_label_and_equal_models_can_be_told_apart(page):
    data = evaluation(["a", "b"])
    data["models"]["b"] = {**data["models"]["a"]}
    html, _ = page(data)
    plot = html.split('aria-label="Precision against recall')[1].split("</figure>")[0]
    lines = re.findall(r'<polyline class="([^"]+)" points="([^"]+)"', plot)
    assert lines[0][1] == lines[1][1] and lines[0][0] != lines[1][0]  # one drawn dashed over the other
    labels = re.findall(r'<text class="f\d" x="([\d.]+)" y="([\d.]+)"[^>]*>(\d)</text>', plot)
    assert [label[2] for label in labels] == ["1", "2"] and labels[0][:2] != labels[1][:2]
    sweep = html.split('aria-label="Precision and recall by threshold')[1].split("</svg>")[0]
    assert ">precision</text>" in sweep and ">recall</text>" in sweep


@pytest.mark.parametrize("threshold", [0.05, 0.98])
def test_the_best_f1_threshold_lies_inside_its_plot(page, threshold):
    data = evaluation(["a"])
    data["models"]["a"]["operating_points"]["best_f1"]["threshold"] = threshold
    sweep = page(data)[0].split('aria-label="Precision and recall by threshold')[1].split("</svg>")[0]
    found = re.search(r'd="M([\d.]+) [\d.]+V[\d.]+"/><text[^>]*>best F1', sweep)
    left, _, right, _ = Axes(0, 1, 0, 1).frame
    assert left < float(found[1]) < right


def test_a_latency_that_was_measured_is_not_said_to_be_missing(page):
    data = evaluation(["a"])
    points = data["models"]["a"]["operating_points"]["default"]
    points |= {"f1": 0.97, "precision": 0.97, "recall": 0.97}
    html, _ = page({**data, "_choice": choice_of(data)})
    assert "CPU latency was not measured" in html and "no CPU benchmark" in html
    data["models"]["a"]["cpu_benchmark_ms"] = 12.0
    html, _ = page({**data, "_choice": choice_of(data)})
    assert "latency was not measured" not in html.lower() and "no CPU benchmark" not in html
    assert "the only one that does" not in html  # of a single model


def test_the_page_speaks_of_flagged_articles(page):
    html, _ = page(evaluation(["a", "b"]))
    assert "called commerce" not in html and "called journalism" not in html


def test_coordinates_grow_to_the_right_and_upwards():
    axes = Axes(0, 1, 0.5, 1)
    left, top, right, bottom = axes.frame
    assert axes.line([(0, 0.5), (1, 1)]) == f"{left}.0,{bottom}.0 {right}.0,{top}.0"
    assert axes.y(0.75) == (top + bottom) / 2 and axes.x(0.5) == (left + right) / 2


@pytest.mark.parametrize(("values", "start"), [([0.95], 0.9), ([0.9, 1], 0.8), ([0.6], 0.5), ([0.3], 0), ([], 0)])
def test_an_axis_begins_below_all_it_shows(values, start):
    assert near_one(values) == start
