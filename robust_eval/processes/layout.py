"""What supervisor, template and worker agree on: the shared pages, the signals, an exit code.

The stamps are a page of numbers for each worker, mapped by it and by the supervisor; behind it, in the same memfd, lie
the results that the worker has not sent yet and then the place where its faulthandler writes. The ledger is one byte a
job, mapped by all and by the driver: it says which jobs had begun when a supervisor died.
"""

import signal
import struct

# Native: such a number is written and read in one step, while the other end reads and writes it.
NUMBER = struct.Struct("Q")
INSTANT = struct.Struct("d")
BEGUN_AT, STOP_AT, LOST_AT, READ_AT, READING_AT = 8, 16, 24, 32, 40
SENT_AT, HEARD_AT, HEARING_AT = 48, 56, 64
HELD_FIRST_AT, HELD_BYTES_AT = 72, 80
CANARY_AT, CANARY = 4088, b"[intact]"  # just before what is held: who writes over that writes over this
HELD_AT = 4096
HELD_BYTES = 1 << 15
STAMP_BYTES = HELD_AT + HELD_BYTES
STACK_BYTES = 1 << 18
LEDGER_BYTES = 1 << 28
LEDGER_OVER = 0x80
_FIRST_FREE = getattr(signal, "SIGRTMIN", signal.SIGUSR1 - 9)
DUMP_SIGNAL = _FIRST_FREE + 9
STOP_SIGNAL = _FIRST_FREE + 10 if hasattr(signal, "SIGRTMIN") else signal.SIGUSR2
CHANNEL_LOST_CODE = 121
MEASURED_S = 0.0001  # a worker tells its peak of jobs that took longer; less than a megabyte can be filled in less
SHELF_BYTES = 1 << 27  # of an executor, and of all workers of a pool together
COOKIE = "ROBUST_EVAL_POOL"
