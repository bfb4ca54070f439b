"""Row functions: `record -> Row`, one file for each shape that data is published in.

A row function takes one decoded record (a dict) and returns a row of `alignlab.rows`, or raises DataError naming the
field. It never converts a value: what has the wrong type is refused. Options are keyword arguments, set in the yaml:
`format: {_target_: alignlab.data.formats.plain.text, _partial_: true, text: review}`.
"""
