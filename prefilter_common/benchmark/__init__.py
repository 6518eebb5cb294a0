"""A model directory and articles in, the cheapest faithful way to run it out.

In: a model directory, articles to time, validation articles to choose a first pass. Out: one row per configuration with
its speed, memory and fidelity, a recommendation, a report and a picture. Does not belong here: the engines themselves
(``scoring``), and whether the model is good enough (``evaluation``).

``results/benchmark_<model>.json`` holds ``conditions`` (device, threads, load, matrix rates, articles timed and
compared), ``tolerance``, ``two_pass`` and ``two_pass_on_validation``, ``rows``, ``skipped`` (engine -> reason),
``recommended`` and ``verdict``.
``cpu_benchmark.json`` in the model directory holds the recommended row, with the earlier keys ``model n_samples avg_ms
p50_ms p95_ms p99_ms min_ms max_ms``; ``Scorer.load`` reads ``engine max_length passes`` from it.
"""
