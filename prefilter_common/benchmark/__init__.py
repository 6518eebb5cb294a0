"""A model directory and articles in, the cheapest faithful way to run it out.

In: a model directory, articles to time, validation articles to choose a first pass. Out: one row per configuration with
its speed, memory and fidelity, a recommendation, a report and a picture. Does not belong here: the engines themselves
(``scoring``), and whether the model is good enough (``evaluation``).

Fidelity. Each row has the share of changed decisions with its upper 95 % limit, the largest difference of a score, and
the F1 difference with its interval, judged on test, up to 1,000 training and up to 200 validation articles. A row is
refused where F1 may be ``--max-f1-loss`` lower than the reference's or, for an engine or precision, where more than
``--max-changed`` of the decisions may change. No change at all has to be seen on 368 articles to show 1 %.

Two passes. Most articles can be recognised by their first hundred tokens. A short first read decides, and only where
its calibrated score lies between two limits is the article read in full. Length and limits are chosen on validation
articles: those that read the fewest tokens while F1 at every operating point is no lower than the full read's. They are
kept in ``prefilter.json``; evaluation drops them when it changes a threshold.

The bound is the operations of the matrix products over the rate at which this machine multiplies large matrices in that
precision, both measured in the same run. ``--device cuda`` times PyTorch on the GPU, synchronised, and leaves
``cpu_benchmark.json`` alone.

``results/benchmark_<model>.json`` holds ``conditions`` (device, threads, load, matrix rates, articles timed and
compared), ``tolerance``, ``two_pass`` and ``two_pass_on_validation``, ``rows``, ``skipped`` (engine -> reason),
``recommended`` and ``verdict``. ``cpu_benchmark.json`` in the model directory holds the recommended row, with the
earlier keys ``model n_samples avg_ms p50_ms p95_ms p99_ms min_ms max_ms``; ``Scorer.load`` reads ``engine max_length
passes`` from it.
"""
