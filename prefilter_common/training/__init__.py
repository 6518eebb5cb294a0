"""Articles and a base model in, a finished model directory out.

In: a ``Recipe``, training and validation articles. Out: a model directory with its metrics and provenance. Does not
belong here: test articles, and the comparison of models.
"""
