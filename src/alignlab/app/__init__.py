"""From a command line to a run folder. The rooms, each importing only those before it:

configs, runs, planning, work, building, commands; `cli` and `api` stand on top and tie them together.
"""
