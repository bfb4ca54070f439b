"""What building a target of each kind does: train, evaluate, sample, collect a table, work out a study.

It is given a resolved config and a run folder, and knows nothing of planning.
"""
