"""The words of driver and supervisor."""

SUBMIT, CANCEL, BUDGET, CLOSE = 1, 2, 3, 4
SETTLED = 1
