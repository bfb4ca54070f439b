"""How a target gets into its run folder: its needs first, under its lock, in this process or in a child of several."""
