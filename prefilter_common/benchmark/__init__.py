"""A model directory and articles in, the cheapest faithful way to run it out.

In: a model directory, articles to time, validation articles to choose stages, texts without labels on which
decisions are compared. Out: one row per configuration with its speed, memory and fidelity, a recommendation, a report
and a picture. Does not belong here: the engines themselves (``scoring``), and whether the model is good enough
(``evaluation``).

Length. What is fast and faithful on long articles need not be so on a feed's. ``--lengths-like FILE`` cuts the contents
of test, training and validation articles at a word, to lengths drawn from the articles of FILE by each article's id, so
that speed, fidelity and the stages are those of that length; the recommendation then is, too. FILE's own articles
have their length already, and are left as they are, as traffic is.

Fidelity. Each row has the share of changed decisions with its upper 95 % limit, the largest difference of a score, and
the F1 difference with its interval. Whether an engine decides as the reference does needs no labels: decisions are
compared on test articles and on as many distinct texts of ``--traffic``, training and validation articles as the
reference scores in a minute, traffic first; at least 1,200, and at most as many as show in 19 of 20 cases that an
engine which changes half of the tolerated share is inside it (4,048 by default). What a model with a reduced vocabulary
cannot read is neither compared nor timed: with every engine it scores 0. A row is refused where F1 may be
``--max-f1-loss`` lower than the reference's or, for an engine or precision, where more than ``--max-changed`` of the
decisions may change; what reads less is refused with its engine. Where that is for want of texts, the reason says how
many it takes. If no decision changes, 368 articles show that fewer than 1 % do; if 0.5 % change, about 1,500.
Decisions are compared in batches of the first of ``--batch-sizes``. ``onnxruntime-int8`` quantises dynamically, by a
scale that it takes from the whole batch, so that its fidelity one article at a time, as ``is_commerce`` scores, is not
exactly what is shown.

Stages. Most articles need no full read. A cascade is a list of stages in ``prefilter.json``: each decides where its
calibrated score lies outside two limits, and passes on the rest; what none decides is read in full.

- ``first stage``: a logistic regression over the article's tokens and pairs of tokens, in ``first_stage.npz``. It is
  fitted to the model's own scores, which need no labels, of three quarters of the training articles, of the first half
  of the traffic, and of a copy of each that is cut to the length of a feed's. An article with a smaller share of its
  own tokens known from there than nine tenths of the validation articles goes on: its script or language may be new.
  Short texts in a language close to those that it was fitted on may have that share all the same.
- ``64 tokens``: the model reads that many.
- ``2 layers``: an early exit from the full read, of an encoder, after a sixth, a third or two thirds of its layers: a
  logistic regression on the mean of the states there, in ``early_exits.npz``, fitted to the same scores. What it passes
  on goes through the other layers.

An encoder has exits, if there are articles or traffic to fit them on; any other model has a short read. Length, limits
and the share of known tokens are chosen on these, on validation articles and on cut copies of them: the limits that
pass on least while at most a third of ``--max-changed`` of these decisions are other than the full read's. On other
texts more are, about half of it, which leaves room to show that ``--max-changed`` holds. A first stage may change half
of that third, and a short read as much; early exits, what the first stage has left of it. What was fitted is judged by
others like it that were fitted without the article, and without others of its title (or, untitled, of its beginning). A
stage that decides less than a tenth of what gets there, or a short read that saves less than a tenth of the tokens, is
not kept. Each kind of stage alone, and all together, are rows of their own. Rows with stages are judged on test
articles, and on those training articles and that traffic on which no stage was fitted or chosen; stages of an earlier
run, on test articles alone. Evaluation drops the stages, with a warning, when it changes a threshold, and warns of an
engine that was compared at others.

The bound is the operations of the matrix products over the rate at which this machine multiplies large matrices in that
precision, both measured in the same run. ``--device cuda`` times PyTorch on the GPU, synchronised, after the stages
that the model has, and writes nothing into its directory.

``results/benchmark_<model>.json`` holds ``conditions`` (device, threads, load, matrix rates, length of the articles,
how many were timed and compared), ``tolerance``, ``stages`` and ``stages_on_validation``, ``rows`` (``stage_costs``
has what share of the test articles each stage decides, and its milliseconds), ``skipped`` (engine or stage ->
reason), ``recommended`` and ``verdict``. ``cpu_benchmark.json`` in the model directory holds the recommended row,
with the earlier keys ``model n_samples avg_ms p50_ms p95_ms p99_ms min_ms max_ms``; ``Scorer.load`` reads ``engine
max_length stages engine_sha256`` from it, and skips an engine that was converted again since.
"""
