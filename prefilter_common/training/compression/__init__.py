"""A base model or finished ones in, a cheaper model out.

In: a base model, its teachers, articles. Out: fewer tokens, and what a student trains on. Does not belong here: the
training itself, and engines, which change how a model is computed but not what.
"""
