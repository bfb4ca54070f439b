"""Tests of alignlab.kernels."""
