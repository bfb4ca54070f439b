"""Tests of alignlab.losses."""
