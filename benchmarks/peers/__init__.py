"""The peers on our workloads, one process per measurement: each module prints one JSON line, as `benchmarks.ours`."""
