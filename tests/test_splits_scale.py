"""Building splits takes time and memory in proportion to the articles; SPLITS_ARTICLES=50000 tries the full size."""

import json
import os
import random
import subprocess
import sys

import numpy as np
import pytest
from conftest import ROOT, write_jsonl

from prefilter_common.articles import Article
from prefilter_common.splits import duplicates
from prefilter_common.splits.duplicates import clusters, find_pairs

pytestmark = pytest.mark.slow

FULL_SIZE = 50_000
ARTICLES = int(os.environ.get("SPLITS_ARTICLES", "5000"))
# Common to many articles of a feed, and long enough to count as text that two articles share.
BOILERPLATE = "Follow us on social media and sign up for our newsletter to get the best stories in the morning. "
STUB = "You have read all of your free articles for this month. Subscribe now to go on reading this one. " * 2

BUILD = """
import json, sys, time
from pathlib import Path
from prefilter_common.runinfo import peak_memory_mib
from prefilter_common.splits.build import BuildOptions, build
started, processed = time.perf_counter(), time.process_time()
build(BuildOptions((Path(sys.argv[1]),), Path(sys.argv[2])))
seconds, processed = time.perf_counter() - started, time.process_time() - processed
print(json.dumps({"seconds": seconds, "processed": processed, "mib": peak_memory_mib()}))
"""


def feed(n):
    """Rows of random words as a news feed has them: of all lengths, some repeated, retitled, cut or only a stub."""
    rng = random.Random(0)
    words = ["".join(rng.choices("abcdefghijklmnopqrstuvwxyzåäö", k=rng.randint(2, 11))) for _ in range(20_000)]

    def text(k):
        return " ".join(words[min(int(rng.expovariate(1 / 3000)), 19_999)] for _ in range(k))

    rows = []
    for i in range(n):
        title, content = text(8), text(int(min(rng.lognormvariate(4.5, 1), 3000)) + 5)
        kind = rng.random()
        if rows and kind < 0.1:
            other = rng.choice(rows)
            title, content = rng.choice([(title, other["content"]), (other["title"], other["content"][:125])])
        elif kind < 0.15:
            content = STUB
        elif kind < 0.5 and len(content) > 4 * len(BOILERPLATE):
            content += " " + BOILERPLATE
        score = 9.0 if rng.random() < 0.3 else 1.0
        rows.append({"id": str(i), "title": title, "content": content, "commerce_score": score, "language": "sv"})
    return rows


def measured(folder, n):
    rows = write_jsonl(folder / f"{n}.jsonl", feed(n))
    command = [sys.executable, "-c", BUILD, rows, folder / f"splits_{n}"]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(list(map(str, command)), cwd=ROOT, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_time_and_memory_grow_with_the_articles(tmp_path):
    small, large = measured(tmp_path, ARTICLES // 5), measured(tmp_path, ARTICLES)
    growth = large["processed"] / small["processed"]
    print(f"{ARTICLES // 5}: {small}\n{ARTICLES}: {large}\nprocessor time grew {growth:.1f} times for 5 times the rows")
    # Five would be linear, and twenty-five quadratic.
    assert growth < 10
    assert large["mib"] < 3 * 1024
    if ARTICLES >= FULL_SIZE:
        assert large["processed"] < 180


def test_comparisons_grow_with_the_articles(monkeypatch):
    """Articles that share a stub are compared with the articles that quote it, and not each with each."""
    counted = []
    real = duplicates.common
    monkeypatch.setattr(duplicates, "common", lambda a, b: counted.append(1) or real(a, b))
    comparisons = []
    for n in (400, 2000):
        articles = [Article(row["title"], STUB, 0) for row in feed(n)]
        articles += [Article(f"Quote {i}", f"{i} said: {STUB} {row['content']}", 0) for i, row in enumerate(feed(5))]
        counted.clear()
        assert len(np.unique(clusters(len(articles), find_pairs(articles)))) == 1
        comparisons.append(len(counted))
    assert comparisons[1] < 10 * comparisons[0]
