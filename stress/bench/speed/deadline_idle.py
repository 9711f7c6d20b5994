"""Deadlines while the driver waits."""

from stress.bench.speed.deadline import kills, measurement

MEASUREMENT = measurement("a job over its time, 1 worker, driver idle", kills)
