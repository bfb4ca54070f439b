"""Speed and memory, ours beside a peer on the same files: `python -m benchmarks`, or `make bench` (README.md here)."""
