"""Splits in, their problems out.

In: a folder of splits, made by this package or not. Out: duplicates, doubtful labels, shortcuts and distances between
the splits, as text, JSON and an HTML page. Does not belong here: anything that changes the splits.
"""
