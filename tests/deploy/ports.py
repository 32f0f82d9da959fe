"""Ports for what is started here."""

import random
import socket

# Those of tests/bench/src/ports.rs, whose blocks have the same names: no two processes take from one.
FIRST, BLOCK, BLOCKS = 12000, 60, 300
_names, _left = [], []


def free(count):
    """Ports of loopback that nobody uses by TCP or UDP, and that no other call is given as long as this process runs."""
    found = []
    while len(found) < count:
        if not _left:
            _left.extend(_another())
        port = _left.pop(0)
        with socket.socket() as tcp, socket.socket(type=socket.SOCK_DGRAM) as udp:
            try:
                tcp.bind(("127.0.0.1", port))
                udp.bind(("127.0.0.1", port))
            except OSError:
                continue
        found.append(port)
    return found


def _another():
    for number in random.sample(range(BLOCKS), BLOCKS):
        name = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        try:
            name.bind(f"\0headwater-ports-{number}")
        except OSError:
            name.close()
            continue
        _names.append(name)
        return range(FIRST + number * BLOCK, FIRST + (number + 1) * BLOCK)
    raise RuntimeError("no block of ports that nobody has")
