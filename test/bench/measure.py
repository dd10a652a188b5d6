"""Runs one command and prints, as one line of JSON on stderr's end, what it cost.

    measure.py COMMAND [ARGUMENT...]

Wall seconds, user and system CPU seconds, the largest resident set of any one
process of it (MiB), and what it read and wrote by system calls (sockets that
are read with recv are not in these, as for every contestant).

    measure.py --touch BYTES

Touches so much memory and gives it back. What a virtual machine has not used
for a while its host takes, and gives back at several times the price of a
page that is there: the first contestant of a round, which finds the memory of
files that were just deleted, would pay for the others. In a process of its
own, as the largest resident set is handed down to commands.
"""
import json
import mmap
import os
import resource
import subprocess
import sys
import time


def io():
    fields = {}
    with open("/proc/self/io") as file:
        for line in file:
            name, value = line.split(":")
            fields[name] = int(value)
    return fields


if sys.argv[1] == "--touch":
    mmap.mmap(-1, int(sys.argv[2]), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | mmap.MAP_POPULATE).close()
    sys.exit()
before = io()
start = time.monotonic()
status = subprocess.run(sys.argv[1:], check=False).returncode
wall = time.monotonic() - start
usage = resource.getrusage(resource.RUSAGE_CHILDREN)
# The kernel adds a child's counts to its parent's when the parent has waited for it.
after = io()
print(
    "\nmeasured "
    + json.dumps(
        {
            "wall": wall,
            "user": usage.ru_utime,
            "system": usage.ru_stime,
            "peakMib": usage.ru_maxrss / 1024,
            "readBytes": after["rchar"] - before["rchar"],
            "writtenBytes": after["wchar"] - before["wchar"],
            "load": os.getloadavg()[0],
        }
    ),
    file=sys.stderr,
)
sys.exit(status if 0 <= status < 256 else 1)
