"""Which model to ship.

In: the sections of the results. Out: one model, or none, with the reason, what stands against it and what would settle
it. Does not belong here: any figure, which the sections have already.
"""
