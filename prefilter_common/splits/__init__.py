"""Scored articles in, train, validation and test sets out, and an audit of any splits.

In: scored articles, or existing splits. Out: ``train.jsonl``, ``val.jsonl``, ``test.jsonl`` and ``manifest.json``, and
an audit report. As a command: ``python -m prefilter_common.splits``. Does not belong here: fine-tuned models, and how
well they do.
"""
