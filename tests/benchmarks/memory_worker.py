"""A process that has held some memory for a moment, and waits; run by test_mosaic.py.

python memory_worker.py MIB
"""

import sys

room = bytearray(int(sys.argv[1]) << 20)
room[::4096] = bytes(len(room) // 4096)  # every page is touched
del room
print(1, flush=True)
input()
