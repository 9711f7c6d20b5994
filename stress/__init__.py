"""Long and random runs against the promises of the package; `python -m stress.<name>` runs one."""
