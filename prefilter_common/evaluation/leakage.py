"""Articles that occur in two of the splits, whole or in part, and what they do to the figures.

The finder in ``splits.duplicates`` does not replace this one: where the titles differ it requires four fifths of the
shorter text, so that clusters stay small, and of 60 training articles with the title and the second half of another
article it found 6, where this module found 34.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NotRequired, TypedDict

import numpy as np
from scipy.sparse import csr_matrix
from sklearn.feature_extraction.text import HashingVectorizer

from prefilter_common.articles import Article, labels_of
from prefilter_common.errors import InputError
from prefilter_common.evaluation.sections import Scored
from prefilter_common.evaluation.traffic.coverage import distinct_texts, plain_text
from prefilter_common.files import read_record
from prefilter_common.models.directory import RUN_FILE
from prefilter_common.statistics.metrics import ThresholdMetrics, threshold_metrics

# Unrelated web pages of one language reach 0.45, pages generated from one template 0.5 to 0.7.
NEAR_DUPLICATE = 0.65
# Half of the shorter text, word for word, is in the longer one.
COPIED_SHARE = 0.5
# Characters in a row that are compared: in a Chinese text a long phrase, elsewhere two or three words.
PHRASE_LENGTH = 12
# A text with fewer is found only as an exact or a near duplicate: a headline of five words may be a coincidence.
MIN_SHINGLES = 40
# Articles compared at once with all others: keeps the similarities to 50,000 below 200 MB.
COMPARED_AT_ONCE = 500
NOT_FOUND = "a paraphrase, a translation, and a text of 50 characters or fewer inside a longer one"


class SharedArticle(TypedDict):
    """An article at ``position`` of one set that is also in another, there as ``train_id``; see ``shared_articles``."""

    id: str | None
    position: int
    train_id: str | None
    similarity: float
    kind: str
    same_label: bool


# A model's metrics with and without the test articles that are in the training set.
WithAndWithout = TypedDict("WithAndWithout", {"with": ThresholdMetrics, "without": ThresholdMetrics})


class IntegritySection(TypedDict):
    """What the splits share; what is not required is there where training articles are.

    ``others`` are the articles that validation shares with the set in the key.
    """

    n_train: int
    others: dict[str, list[SharedArticle]]
    n_test: NotRequired[int]
    n_exact: NotRequired[int]
    n_near: NotRequired[int]
    n_contained: NotRequired[int]
    n_too_short: NotRequired[int]
    not_found: NotRequired[str]
    shared: NotRequired[list[SharedArticle]]
    models: NotRequired[dict[str, WithAndWithout]]


def integrity_section(
    train: Sequence[Article] | None,
    articles: Sequence[Article],
    models: Mapping[str, Scored],
    val: Sequence[Article] | None,
) -> IntegritySection | None:
    """Which test articles occur in the training set too, every model's metrics with and without them, and whether
    validation articles occur in either. None where there is nothing to compare with."""
    others = {}
    if val:
        others["validation articles in the test set"] = shared_articles(articles, val)
        if train:
            others["validation articles in the training set"] = shared_articles(train, val)
    if not train:
        return {"n_train": 0, "others": others} if others else None
    shared = shared_articles(train, articles)
    keep = np.ones(len(articles), bool)
    keep[[row["position"] for row in shared]] = False  # not by id: two articles may have the same
    labels = labels_of(articles)
    rows: dict[str, WithAndWithout] = {}
    for name, model in models.items():
        (with_them,) = threshold_metrics(labels, model.scores, [model.threshold])
        (without,) = threshold_metrics(labels[keep], model.scores[keep], [model.threshold])
        rows[name] = {"with": with_them, "without": without}
    kinds = [row["kind"] for row in shared]
    return {
        "n_train": len(train),
        "n_test": len(articles),
        "n_exact": kinds.count("exact"),
        "n_near": kinds.count("near"),
        "n_contained": kinds.count("contained"),
        "n_too_short": sum(len(_shingles(plain_text(a))) < MIN_SHINGLES for a in articles),
        "not_found": NOT_FOUND,
        "shared": shared,
        "others": others,
        "models": rows,
    }


def repetition_warnings(test: Sequence[Article]) -> list[str]:
    """A sentence where test articles are not independent of each other."""
    n = len(test) - len(distinct_texts(test)[0])
    if not n:
        return []
    return [f"{n} of the {len(test)} test articles have the text of another, so intervals are too narrow"]


def training_warnings(directories: Sequence[Path], train: Mapping[str, Any] | None) -> list[str]:
    """Sentences about models whose training articles are not those that were compared with the test set.

    Args:
        train: file and sha256 of those, as ``run.json`` has them; None where there were none.
    """
    if train is None:
        return [
            "no training articles were read, so the test and the audited articles were not checked for copies of them: "
            "pass --train-data"
        ]
    others: dict[str, list[str]] = {}
    for directory in directories:
        try:
            own = read_record(directory / RUN_FILE)["data"]["train"]
            if own["sha256"] != train["sha256"]:
                others.setdefault(str(own["file"]), []).append(directory.name)
        except (InputError, KeyError, TypeError):
            continue  # not trained here, or by an earlier version
    return [
        f"{', '.join(names)}: trained on {file}, not on {train['file']}, so test articles may be among their own "
        "training articles: pass --train-data"
        for file, names in others.items()
    ]


def shared_articles(train: Sequence[Article], test: Sequence[Article]) -> list[SharedArticle]:
    """The test articles that also occur in ``train``, exactly, nearly or in part, with the most similar one there.

    Near: the cosine between the sets of five-character sequences within words, over the first 5,000 characters of each
    text, is 0.65 or more. Contained: half or more of the sequences of 12 characters of the shorter text are in the
    longer one, whole texts compared (Broder 1997), as when one is the snippet of the other. Case and white space are
    ignored. ``similarity`` is 1.0, the cosine, or the share contained.
    """
    vectorizer = HashingVectorizer(
        analyzer="char_wb", ngram_range=(5, 5), binary=True, alternate_sign=False, dtype=np.float32, n_features=2**22
    )
    # Transposed once: scipy's product would otherwise visit every column, of which there is one per hash.
    seen = csr_matrix(vectorizer.transform(_beginnings(train))).T.tocsr()
    known, plain = ([plain_text(a) for a in articles] for articles in (train, test))
    exact = dict(zip(known, train, strict=True))
    contained = _containment(known, plain)
    found: list[SharedArticle] = []
    for start in range(0, len(test), COMPARED_AT_ONCE):
        part = test[start : start + COMPARED_AT_ONCE]
        similar = vectorizer.transform(_beginnings(part)) @ seen
        for position, (article, row) in enumerate(zip(part, similar, strict=True), start=start):
            twin = exact.get(plain[position])
            cosine = float(row.data.max()) if row.nnz else 0.0
            share, source = contained[position]
            if twin is not None:
                kind, similarity, other = "exact", 1.0, twin
            elif cosine >= NEAR_DUPLICATE:
                kind, similarity, other = "near", round(min(cosine, 1.0), 4), train[row.indices[row.data.argmax()]]
            elif share >= COPIED_SHARE:
                kind, similarity, other = "contained", round(share, 4), train[source]
            else:
                continue
            found.append({
                "id": article.id, "position": position, "train_id": other.id, "similarity": similarity, "kind": kind,
                "same_label": article.label == other.label,
            })  # fmt: skip
    return found


def _containment(train: Sequence[str], test: Sequence[str]) -> list[tuple[float, int]]:
    """For each test text the largest share of the shorter text's shingles that it has in common with a training text,
    and which; (0, 0) for a text too short to tell. All are ``plain_text``.

    Only the shingles of the test texts are kept in memory.
    """
    ours = [_shingles(text) for text in test]
    sizes = np.array([len(shingles) for shingles in ours])
    owners = np.repeat(np.arange(len(test)), sizes)
    known = np.concatenate([*ours, np.empty(0, np.uint64)])
    order = np.argsort(known, kind="stable")
    known, owners = known[order], owners[order]
    best, where = np.zeros(len(test)), np.zeros(len(test), int)
    for number, text in enumerate(train):
        theirs = _shingles(text)
        if len(theirs) < MIN_SHINGLES:
            continue
        first, last = np.searchsorted(known, theirs, "left"), np.searchsorted(known, theirs, "right")
        hit = last > first
        if not hit.any():
            continue
        owned = [owners[a:b] for a, b in zip(first[hit].tolist(), last[hit].tolist(), strict=True)]
        shared = np.bincount(np.concatenate(owned), minlength=len(test))
        share = np.where(sizes >= MIN_SHINGLES, shared / np.maximum(np.minimum(sizes, len(theirs)), 1), 0.0)
        better = share > best
        best[better], where[better] = share[better], number
    return list(zip(best.tolist(), where.tolist(), strict=True))


def _shingles(text: str) -> np.ndarray:
    """The distinct hashes of all sequences of 12 characters, sorted."""
    codes = np.frombuffer(text.encode("utf-32-le", "replace"), np.uint32).astype(np.uint64)
    if len(codes) < PHRASE_LENGTH:
        return np.empty(0, np.uint64)
    hashes = np.zeros(len(codes) - PHRASE_LENGTH + 1, np.uint64)
    for i in range(PHRASE_LENGTH):  # a polynomial modulo 2^64, in the prime of 64-bit FNV hashes
        hashes = hashes * np.uint64(1_099_511_628_211) + codes[i : len(codes) - PHRASE_LENGTH + 1 + i]
    return np.unique(hashes)


def _beginnings(articles: Sequence[Article]) -> list[str]:
    return [f"{a.title} {a.content}"[:5_000] for a in articles]
