"""The words of driver and host.

Frames are those of `processes.wire` without descriptors: payloads travel as bytes that nobody on the way unpickles.
"""

CONFIG, SUBMIT, CANCEL, WITHDRAW, BUDGET, CLOSE, TELL, PING = 1, 2, 3, 4, 5, 6, 7, 8
HELLO, SETTLED, TOLD, PONG, END, SPENT = 1, 2, 3, 4, 5, 6

# What marshal can hold in one piece, and a little less.
LARGEST_BYTES = 2**31 - 2**12
# A frame is sent when it holds so much: the next one's outcomes need not wait for all of it.
FRAME_BYTES = 1 << 24
