"""Runs a command in a network namespace of its own, in which there is only a loopback interface of a given MTU.

    loopback.py MTU COMMAND [ARGUMENT...]

Needs root, or a kernel that gives namespaces to users; `unshare` says why it is refused. The interface is set by the
kernel's own calls (netdevice(7)), since a bare Debian has no `ip`.
"""

import fcntl
import os
import socket
import struct
import sys

INSIDE = "--inside"
SIOCGIFFLAGS, SIOCSIFFLAGS, SIOCSIFMTU = 0x8913, 0x8914, 0x8922
IFF_UP = 1


def main():
    if len(sys.argv) < 3 or sys.argv[1] == INSIDE and len(sys.argv) < 4:
        sys.exit(__doc__)
    if sys.argv[1] != INSIDE:
        user = [] if os.geteuid() == 0 else ["--map-root-user"]
        os.execvp("unshare", ["unshare", *user, "--net", sys.executable, __file__, INSIDE, *sys.argv[1:]])
    raise_loopback(int(sys.argv[2]))
    os.execvp(sys.argv[3], sys.argv[3:])


def raise_loopback(mtu):
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:

        def call(number, format, value):
            # struct ifreq: the interface's name, then a union of which each call reads one member.
            request = struct.pack(f"16s{format}", b"lo", value).ljust(40, b"\0")
            return struct.unpack_from(format, fcntl.ioctl(any_socket, number, request), 16)[0]

        call(SIOCSIFMTU, "i", mtu)
        call(SIOCSIFFLAGS, "h", call(SIOCGIFFLAGS, "h", 0) | IFF_UP)


if __name__ == "__main__":
    main()
