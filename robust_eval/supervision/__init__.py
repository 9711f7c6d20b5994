"""The pure core of supervision: it is told the time and what happened, and answers what to do.

Nothing below this package may touch a clock, a process, a file or a thread: `processes/shell.py` is the only
place where the core meets the world. The rules of supervision that it embodies are numbered in `supervisor.py`.
"""
