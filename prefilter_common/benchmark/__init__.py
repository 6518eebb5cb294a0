"""A model directory and articles in, the cheapest faithful way to run it out.

In: a model directory, articles to time, validation articles to choose a first pass, texts without labels on which
decisions are compared. Out: one row per configuration with its speed, memory and fidelity, a recommendation, a report
and a picture. Does not belong here: the engines themselves (``scoring``), and whether the model is good enough
(``evaluation``).

Length. What is fast and faithful on long articles need not be so on a feed's. ``--lengths-like FILE`` cuts the contents
of test, training and validation articles at a word, to lengths drawn from the articles of FILE by each article's id, so
that speed, fidelity and the first pass are those of that length; the recommendation then is, too. FILE's own articles
have their length already, and are left as they are, as traffic is.

Fidelity. Each row has the share of changed decisions with its upper 95 % limit, the largest difference of a score, and
the F1 difference with its interval. Whether an engine decides as the reference does needs no labels: decisions are
compared on test articles and on as many distinct texts of ``--traffic``, training and validation articles as the
reference scores in a minute, traffic first; at least 1,200, at most what shows that half of the tolerated share is
inside. A row is refused where F1 may be ``--max-f1-loss`` lower than the reference's or, for an engine or precision,
where more than ``--max-changed`` of the decisions may change; where that is for want of texts, the reason says how many
it takes. No change at all has to be seen on 368 articles to show 1 %; if 0.5 % change, it takes about 1,500.

Two passes. Most articles can be recognised by their first hundred tokens. A short first read decides, and only where
its calibrated score lies between two limits is the article read in full. Length and limits are chosen on validation
articles: those that read the fewest tokens while F1 at every operating point is no lower than the full read's. They are
kept in ``prefilter.json``; evaluation drops them when it changes a threshold.

The bound is the operations of the matrix products over the rate at which this machine multiplies large matrices in that
precision, both measured in the same run. ``--device cuda`` times PyTorch on the GPU, synchronised, and leaves
``cpu_benchmark.json`` alone.

``results/benchmark_<model>.json`` holds ``conditions`` (device, threads, load, matrix rates, length of the articles,
how many were timed and compared), ``tolerance``, ``two_pass`` and ``two_pass_on_validation``, ``rows``, ``skipped``
(engine -> reason), ``recommended`` and ``verdict``. ``cpu_benchmark.json`` in the model directory holds the recommended
row, with the earlier keys ``model n_samples avg_ms p50_ms p95_ms p99_ms min_ms max_ms``; ``Scorer.load`` reads ``engine
max_length passes`` from it.
"""
