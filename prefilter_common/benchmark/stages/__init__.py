"""A model that reads in full and articles in, the stages before the full read out.

In: a scorer, labelled validation articles, other articles with or without labels. Out: a first stage, a short read and
early exits that are worth it, with limits within which they are not sure. Does not belong here: running the stages
(``scoring``), and whether they may be recommended.
"""
