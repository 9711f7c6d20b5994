"""The words of driver and supervisor."""

SUBMIT, CANCEL, BUDGET, CLOSE, TELL = 1, 2, 3, 4, 5
SETTLED, TOLD, NOTICED = 1, 2, 3
