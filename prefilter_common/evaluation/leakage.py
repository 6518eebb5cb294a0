"""What needs no encoder: the floor that a model must beat, and articles that stand in both train and test."""

from collections.abc import Sequence

import numpy as np
from scipy.sparse import csr_matrix
from sklearn.feature_extraction.text import HashingVectorizer, TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline

from prefilter_common.articles import Article

# Chosen on validation articles among words, word pairs and characters, texts cut or not: the best with 1,512 training
# articles (F1 0.91, under 3 s), though words do better with the 280 of splits/ (0.86 against 0.82).
BASELINE_CHARACTERS = 1_000
# Unrelated web pages of one language reach 0.45, pages filled from one template 0.5 to 0.7.
NEAR_DUPLICATE = 0.65
# Test articles compared at once with all training articles: keeps the similarities of 50,000 below 200 MB.
CHUNK = 500


def baseline_scores(train: Sequence[Article], test: Sequence[Article]) -> np.ndarray:
    """(n,) P(commerce) of the test articles by TF-IDF of four characters and logistic regression."""
    classifier = make_pipeline(
        TfidfVectorizer(analyzer="char_wb", ngram_range=(4, 4), min_df=2, sublinear_tf=True),
        LogisticRegression(C=10, solver="liblinear"),
    )
    classifier.fit(_texts(train, BASELINE_CHARACTERS), [a.label for a in train])
    return classifier.predict_proba(_texts(test, BASELINE_CHARACTERS))[:, 1]


def shared_articles(train: Sequence[Article], test: Sequence[Article]) -> list[dict]:
    """The test articles that also stand in ``train``, exactly or nearly, with the most similar one there.

    Similarity is the cosine between the sets of five-character sequences within words of both texts, of their first
    5,000 characters; case and white space do not count. 1.0 is an exact duplicate, from 0.65 on it is a near one. A
    test article that is quoted whole in a much longer one is not found.
    """
    vectorizer = HashingVectorizer(
        analyzer="char_wb", ngram_range=(5, 5), binary=True, alternate_sign=False, dtype=np.float32, n_features=2**22
    )
    # With as many columns as there are hashes, scipy's product would go through all of them: transposed once.
    seen = csr_matrix(vectorizer.transform(_texts(train, 5_000))).T.tocsr()
    exact = {" ".join(text.casefold().split()): a for text, a in zip(_texts(train, None), train, strict=True)}
    found = []
    for start in range(0, len(test), CHUNK):
        part = test[start : start + CHUNK]
        similar = vectorizer.transform(_texts(part, 5_000)) @ seen
        for article, text, row in zip(part, _texts(part, None), similar, strict=True):
            twin = exact.get(" ".join(text.casefold().split()))
            best = float(row.data.max()) if row.nnz else 0.0
            if twin is None and best < NEAR_DUPLICATE:
                continue
            other = twin or train[row.indices[row.data.argmax()]]
            found.append({
                "id": article.id,
                "train_id": other.id,
                "similarity": 1.0 if twin else round(min(best, 1.0), 4),
                "kind": "exact" if twin else "near",
                "same_label": article.label == other.label,
            })  # fmt: skip
    return found


def _texts(articles: Sequence[Article], limit: int | None) -> list[str]:
    return [f"{a.title} {a.content}"[:limit] for a in articles]
