"""The words of driver and supervisor."""

SUBMIT, CANCEL, BUDGET, CLOSE, TELL, WITHDRAW = 1, 2, 3, 4, 5, 6
SETTLED, TOLD, NOTICED = 1, 2, 3
