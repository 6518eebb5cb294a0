"""Arrays in, numbers out: metrics with intervals, calibration, paired tests, thresholds.

In: numpy arrays of labels, scores and decisions. Out: plain JSON values and arrays. Does not belong here: articles,
models, files, or anything that has to be loaded.
"""
