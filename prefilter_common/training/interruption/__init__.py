"""What is left of a run that is stopped or fails, and how it goes on.

In: the trainer's state, signals, exceptions. Out: checkpoints that are complete or skipped, the one that ``--resume``
continues, and one line that says so. Does not belong here: what is trained, and on what.
"""
