"""Model directories and labelled articles in, results and a choice out.

In: model directories, test articles, and where there are some training, validation, traffic and audited articles. Out:
one row per model with intervals, slices and operating points, what follows from several of them, what they would do in
production, the choice of the one to ship, and a page. Does not belong here: how a model is loaded or run (``scoring``),
and formulas over arrays (``statistics``).

Operating points. Training fits a temperature on the validation articles and leaves their calibrated scores in the model
directory. Thresholds are chosen on those, never on test articles, and written to ``prefilter.json``: ``default`` is
0.5; ``best_f1`` is the best on validation that blocks at most 5 % of the journalism; ``high_precision`` is the lowest
threshold shown to reach ``--target-precision`` at the first ``--prevalence``. For 95 % at 5 % commerce that takes about
1,456 journalism articles in validation without a false alarm; with fewer, the model has no such point, and a warning.
Points of other names are the user's own, and stay.

Choice. Several models meet the targets: the fastest, if all were timed alike and do not differ on traffic. Otherwise
the one with the highest precision of those that meet the targets or, if none does, the minimum. None meets that: more
data is needed. Each model counts at its ``default`` operating point, because picking among its points by their test
figures would be tuning on the test set. A random sample of the traffic that was labelled (``--audited``) counts before
the test set, unless more than 2 % of it are training articles.

``results/evaluation_results.json``, by key; intervals are [low, high], 95 %:

    <model>           the earlier keys accuracy f1 precision recall avg_inference_ms p50_inference_ms p95_inference_ms
                      confusion_matrix (rows true, columns predicted, journalism first), at the default threshold
      .intervals      of f1 precision recall accuracy pr_auc roc_auc; null for the areas where the scores separate the
                      labels perfectly, in reverse, or are all the same
      .slices         by language, characters, source, sources (seen in training or not), tokens, read (whole or cut):
                      counts, metrics, intervals; enough is false below 20 articles. worst_slice: of those that are
                      worse beyond chance, else of all, the one with the lowest accuracy
      .calibration    temperature; brier, ece and reliability bins, each also as _before, without the temperature
      .operating_points  by name: threshold, metrics and intervals on test
      .sweep          thresholds 0.50 to 0.99; pr_curve: [threshold, precision, recall]
      .floor          F1 above the baseline's, beats, beyond_chance
      .files          sha256 of the checkpoint's
      .cpu_benchmark_ms  from the benchmark; null where it has not run, or not since evaluation removed the stages.
                      cpu_benchmark_on of what articles and on what, cpu_benchmark_with which engine and stages,
                      cpu_benchmark_f1 theirs
      .error          instead of all this: why the model could not be evaluated
    _baseline         TF-IDF with logistic regression on the same training articles
    _comparison       best, and every other against it: F1 difference, McNemar, p_adjusted, articles_needed, verdict
    _integrity        test articles that also occur in train, whole, nearly or in part, with ids; metrics with and
                      without them; others: validation articles in test and train; what could not have been found
    _traffic          n_articles, n_distinct texts; flag rates; every pair's agreement, overlap, slices, disagreements,
                      detectable difference and verdict; main_language; uncovered languages, lengths and crossings
                      of 1 % or more; uncovered_share in all crossings
    _production       by model: prevalence_estimate; panel (at each prevalence and operating point precision, recall,
                      false-positive rate, per_1000 and saving); blocked (journalism by slice, the worst first)
    _audit            by model precision, recall, false_positive_rate and prevalence in production, also by slice, the
                      worst first, where the labels are a random_sample of the traffic; of_traffic: whether of this
                      run's; pairs: who is right where two differ; null without --audited
    _choice           selected, operating_point, favourite, tier, reason, objections (suspect, remedy, part, to_label,
                      file), cautions, shown, and for each model what it misses and the states shown, not shown, missed
    _worst_errors     by model, with texts
    _warnings _settings _test _run  sentences; targets, prevalence, costs and seed; counts; provenance
    _manifest         sha256 of the splits' manifest, and which of them differ from it; null without one

``results/predictions/<model>.jsonl``: ``id label score language``, one row per test article, in the test file's order.
``results/review_queue_<model>.jsonl`` and ``audit_<model>.jsonl``: ``traffic.labelling.LabelRow``.
"""
