"""Listens on many ports at once, accepts whoever comes and hangs up. usage: listeners.py FIRST LAST STEP"""

import selectors
import socket
import sys

first, last, step = map(int, sys.argv[1:4])
doors = selectors.DefaultSelector()
for port in range(first, last + 1, step):
    door = socket.socket()
    door.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    door.bind(("0.0.0.0", port))
    door.listen(128)
    door.setblocking(False)
    doors.register(door, selectors.EVENT_READ)
while True:
    for ready, _ in doors.select():
        try:
            ready.fileobj.accept()[0].close()
        except OSError:
            pass  # it has gone already
