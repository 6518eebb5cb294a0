"""What stages before the full read say of an article, with the weights that a model directory keeps for them.

In: token ids of an article, or the states of an encoder's lower layers. Out: log-odds of commerce. Does not belong
here: the limits within which that is not final (``models.contract``), and how weights and limits are chosen
(``benchmark.stages``).
"""
