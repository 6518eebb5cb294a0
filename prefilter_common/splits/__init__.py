"""Scored articles in, train, validation and test sets out, and an audit of any splits.

In: scored articles, or existing splits. Out: ``train.jsonl``, ``val.jsonl``, ``test.jsonl`` and ``manifest.json``, and
an audit report. As a command: ``python -m prefilter_common.splits``. Does not belong here: fine-tuned models, and how
well they do.

build labels rows by ``commerce_score``, repairs and cleans texts, keeps articles that share their text in one split,
and writes the three files, ``manifest.json`` and ``cleaning.jsonl``, all of them or none; rows read = rows written +
rows discarded by reason. The result depends on the rows and ``--seed``, not on their order; with ``--overwrite`` or
``--previous`` every article keeps its split, and the label that merge has given it. Where different texts have the same
id, all but one get a new id, which is counted as repaired. merge adds labelled articles to train only, and none that
--group-by or --test-after of the build keep out of it; it corrects a label where the text is the same, or the id is and
the texts are similar. audit reports overlaps, doubtful labels, shortcuts and distances.
"""
