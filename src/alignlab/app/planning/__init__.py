"""What a command line asks for: targets with their keys and needs, and all their faults before anything is built."""
