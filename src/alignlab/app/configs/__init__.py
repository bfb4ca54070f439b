"""What a config is before anything is planned: where its files lie, how it is composed, spelled and checked.

Configs are held against the source of what they name; nothing heavy is imported, and no run folder is looked at.
"""
