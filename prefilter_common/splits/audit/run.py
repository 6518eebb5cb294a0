"""Options in, audit report out."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path
from typing import Literal, TypedDict

import numpy as np

from prefilter_common.articles import COMMERCE, JOURNALISM, Article, load_articles
from prefilter_common.errors import InputError
from prefilter_common.language import languages
from prefilter_common.runinfo import FileFingerprint, file_fingerprint
from prefilter_common.splits.assignment import NAMES
from prefilter_common.splits.audit.probes import (
    Distance,
    FastModel,
    Labelled,
    distance,
    f1_on_held_out_sources,
    label_suspects,
    predicted,
    text_features,
    total_variation,
)
from prefilter_common.splits.audit.rows import (
    Duplicates,
    Reading,
    ScoreConflicts,
    ShownArticle,
    SplitDescription,
)
from prefilter_common.splits.audit.sections import (
    describe_split,
    duplicates,
    gather,
    labels_against_scores,
    reading,
)
from prefilter_common.splits.audit.shortcuts import PhraseRow, ShortcutRow, shortcuts, telling_phrases
from prefilter_common.splits.cleaning import ScoreRule
from prefilter_common.splits.grouping import length_name
from prefilter_common.splits.guard import manifest_warnings
from prefilter_common.splits.manifest import MadeBy, ManifestRecord, made_by, manifest_state
from prefilter_common.splits.shingles import normalised

# Shares that the audit warns about: of truncated articles, and of traffic in a language or length that test lacks.
MANY_CUT = 0.1
NOTABLE_IN_TRAFFIC = 0.01


@dataclass(frozen=True)
class AuditOptions:
    """The options of ``audit``; ``model`` is the directory whose tokenizer is used, None for the packaged encoder."""

    splits: Path
    output: Path = Path("results")
    traffic: Path | None = None
    model: str | None = None
    rule: ScoreRule = field(default_factory=ScoreRule)
    seed: int = 0


class AuditRun(MadeBy):
    """What made the report, and the files that it is on."""

    data: dict[str, FileFingerprint]


class DistanceRow(TypedDict):
    """Of two sets: total variation of languages and lengths, 0 to 1, and how well texts tell them apart."""

    sets: list[str]
    language: float
    length: float
    text: Distance | None


class SuspectRow(ShownArticle):
    """An article with a doubtful label."""

    is_issue: bool
    probability_of_label: float


class AuditFindings(TypedDict):
    """Every section of the report."""

    _run: AuditRun
    manifest: ManifestRecord | None
    splits: dict[str, SplitDescription]
    traffic: SplitDescription | None
    labels: ScoreConflicts
    duplicates: Duplicates
    distances: list[DistanceRow]
    reading: Reading
    shortcuts: list[ShortcutRow]
    phrases: list[PhraseRow]
    fast_model: FastModel
    suspects: list[SuspectRow]


class AuditReport(AuditFindings):
    """The content of ``split_audit.json``; ``overlap`` is whether train and test share articles."""

    overlap: bool
    warnings: list[str]


def audit(options: AuditOptions, argv: Sequence[str] = ()) -> AuditReport:
    """The report, as plain JSON values. Raises InputError for files that cannot be read."""
    splits = read_splits(options.splits)
    traffic = load_articles(options.traffic) if options.traffic else None
    state = manifest_state(options.splits)
    files = {name: options.splits / f"{name}.jsonl" for name in splits}
    if options.traffic:
        files["traffic"] = options.traffic
    whole = gather(splits)
    data = Labelled(whole.articles, np.array([a.label for a in whole.articles]), whole.clusters, options.seed)
    features = text_features(whole.articles)
    scores = predicted(features, data.labels, data.folds())
    report: AuditFindings = {
        "_run": {**made_by(argv), "data": {role: file_fingerprint(path) for role, path in files.items()}},
        "manifest": state,
        "splits": {name: describe_split(articles) for name, articles in splits.items()},
        "traffic": describe_split(traffic) if traffic else None,
        "labels": labels_against_scores(whole, options.rule),
        "duplicates": duplicates(whole),
        "distances": distances(splits, traffic, options.seed),
        "reading": reading(splits, options.model),
        "shortcuts": shortcuts(data),
        "phrases": telling_phrases(data),
        "fast_model": f1_on_held_out_sources(data, features, scores),
        "suspects": [
            {
                **whole.shown(row["place"]),
                "is_issue": row["is_issue"],
                "probability_of_label": row["probability_of_label"],
            }
            for row in label_suspects(data, scores)
        ],
    }
    overlap = any(row["articles"] for row in report["duplicates"]["across"] if row["splits"] == ["train", "test"])
    return {**report, "overlap": overlap, "warnings": audit_warnings(report)}


def read_splits(folder: Path) -> dict[str, list[Article]]:
    """The labelled articles of train, test and, if present, val.

    Raises InputError for a missing file or label, and for a label with too few articles that have a letter or digit.
    """
    for name in ("train", "test"):
        if not (folder / f"{name}.jsonl").is_file():
            raise InputError(f"{folder}: contains no {name}.jsonl; pass a folder with splits")
    paths = {name: folder / f"{name}.jsonl" for name in NAMES}
    splits = {name: load_articles(path, require_labels=True) for name, path in paths.items() if path.is_file()}
    readable = [a for articles in splits.values() for a in articles if normalised(a.title + a.content)]
    labels = Counter(article.label for article in readable)
    if min(labels[JOURNALISM], labels[COMMERCE]) < 2:
        raise InputError(f"{folder}: an audit needs at least two articles with text of each label; add some to train")
    return splits


def distances(
    splits: Mapping[str, Sequence[Article]], traffic: Sequence[Article] | None, seed: int
) -> list[DistanceRow]:
    """Distances between train, test and traffic: in language and length (total variation), and in text."""
    sets = {name: splits[name] for name in ("train", "test")} | ({"traffic": traffic} if traffic else {})
    rows: list[DistanceRow] = []
    for (a, these), (b, those) in combinations(sets.items(), 2):
        spoken = [languages(part) for part in (these, those)]
        sizes = [[length_name(article) for article in part] for part in (these, those)]
        rows.append({
            "sets": [a, b], "language": total_variation(*spoken), "length": total_variation(*sizes),
            "text": distance(these, those, seed),
        })  # fmt: skip
    return rows


def audit_warnings(report: AuditFindings) -> list[str]:
    """Problems to know about before training on these splits, worst first."""
    found = []
    for row in report["duplicates"]["across"]:
        if row["articles"]:
            first, second = row["splits"]
            found.append(f"{second} articles that share their text or id with {first} articles: {row['articles']}")
    counted = {
        "clusters of articles that share their text but not their label": report["duplicates"]["both_labels"],
        "labels that contradict their score": report["labels"]["against"],
        "articles with a score between the thresholds": report["labels"]["in_the_middle"],
    }
    found += [f"{what}: {n}" for what, n in counted.items() if n]
    state = report["manifest"]
    if state is None:
        found.append("there is no manifest.json, so the origin of these splits is unknown")
    found += manifest_warnings(state)
    found += [
        f"{row['property']} alone predicts {row['accuracy']:.0%} of the labels: a model can do well without reading"
        for row in report["shortcuts"]
        if row["is_shortcut"]
    ]
    fast = report["fast_model"]
    if fast["held_out"] and fast["held_out"]["interval"][1] < fast["mixed"]["interval"][0]:
        found.append(
            f"the F1 of a fast model falls from {fast['mixed']['f1']:.2f} to {fast['held_out']['f1']:.2f} "
            "on sources that it has not seen"
        )
    cut = {name: row["share_cut"] for name, row in report["reading"]["splits"].items() if row["share_cut"] > MANY_CUT}
    if cut:
        shares = ", ".join(f"{share:.0%} of {name}" for name, share in cut.items())
        found.append(f"articles truncated at {report['reading']['max_length']} tokens: {shares}")
    return found + _uncovered(report)


def _uncovered(report: AuditFindings) -> list[str]:
    traffic, test = report["traffic"], report["splits"]["test"]
    properties: tuple[Literal["languages", "lengths"], ...] = ("languages", "lengths")
    found: list[str] = []
    if traffic is None:
        return found
    for by in properties:
        shares = {value: n / traffic["articles"] for value, n in traffic[by].items() if not test[by].get(value)}
        named = [f"{value} ({share:.0%})" for value, share in shares.items() if share >= NOTABLE_IN_TRAFFIC]
        if named:
            found.append(f"{by} in the traffic but not in test: {', '.join(named)}")
    return found
