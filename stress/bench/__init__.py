"""The comparison with the peers: `python -m stress.bench.matrix` for faults, `python -m stress.bench` for speed."""
