"""The driver of many hosts: the same pool on each of them, one socket to each, and a core that shares out the jobs."""
