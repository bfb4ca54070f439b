"""One run: its folder on disk, what is recorded there, and the process it runs in (a quiet start, a clean stop)."""
