"""What a model directory holds.

In: a directory, a hub name or the packaged encoder. Out: a ``Checkpoint`` in memory, its ``Contract``, and the files
beside it, all named in ``directory``. Does not belong here: how a model is trained, run or judged.
"""
