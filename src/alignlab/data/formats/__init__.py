"""Row functions: `record -> Row`, one file for each shape that data is published in.

A row function takes one decoded record (a dict) and returns a row of `alignlab.rows`, or raises DataError naming the
field. It converts no value: what has the wrong type is refused (a number may be spelled as text, since csv has nothing
else). Options are keyword arguments, set in the yaml:
`format: {_target_: alignlab.data.formats.plain.text, _partial_: true, text: review}`.
"""
