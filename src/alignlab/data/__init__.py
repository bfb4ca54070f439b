"""Rows on disk become batches of tensors: formats, sources, templates, tokenising, collating, one data module.

Imported without torch: `alignlab.data.sources` is used for planning, before anything heavy is loaded.
"""
