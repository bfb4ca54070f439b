"""Studies: claims about methods worked out in small worlds, by listing every response where that can be done.

A study is a function `study(runs, *, settings...) -> Findings`; `runs` are the folders of what its target needs, by
name. Yamls in experiments/exact/ say `task.study._target_` and the settings.
"""
