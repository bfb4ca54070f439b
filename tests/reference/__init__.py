"""Naive twins: the same quantities in the plainest form, by loops over scalars in float64, written from the papers.

They work on 0-dim tensors rather than floats only so that autograd gives their gradients too.
"""
