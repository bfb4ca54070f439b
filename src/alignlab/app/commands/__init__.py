"""What a user types: the command that builds, the verbs beside it, and what both of them print."""
