"""Unlabelled articles from production, and what the models' scores of them say.

In: traffic articles and each model's scores of them. Out: flag rates, where two models decide differently, which parts
of the traffic the test set cannot speak for, and which articles to label. Does not belong here: test articles' figures
(``sections``), and which model to ship (``choice``).
"""
