"""Make a listening socket ignore new connections, without resetting the existing ones."""

from __future__ import annotations

import ctypes
import socket
import struct
import sys
from collections.abc import Iterable
from typing import Any, Final

_SO_ATTACH_FILTER: Final = 26  # Linux, not in the module socket
# In `struct tcp_info`, which has the length of the queue in the member tcpi_unacked for a listening socket.
_UNACKED: Final = slice(24, 28)
# A classic BPF program that drops segments with the flag SYN. Its input begins with the TCP header.
_DROP_SYN: Final = (
    (0x30, 0, 0, 13),  # load the byte with the flags
    (0x45, 0, 1, 0x02),  # is SYN set?
    (0x06, 0, 0, 0),  # drop
    (0x06, 0, 0, 0xFFFFFFFF),  # accept
)


def reject_new_connections(sockets: Iterable[Any]) -> bool:
    """Make the kernel ignore further connection attempts. Returns whether that is possible on this system.

    Closing a listening socket resets the connections that the kernel has established, but the process hasn't accepted.
    After this call their number can only shrink. A client whose attempt is ignored tries again after a second. Then it
    is refused, or another process accepts it.

    The filter belongs to the socket, so don't use this for a socket that other processes still accept from.
    """
    if sys.platform != "linux":
        return False
    program = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *each) for each in _DROP_SYN))
    option = struct.pack("HL", len(_DROP_SYN), ctypes.addressof(program))
    is_possible = True
    for each in sockets:
        if each.family not in (socket.AF_INET, socket.AF_INET6):
            is_possible = False
            continue
        try:
            each.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, option)
        except OSError:  # a sandbox may forbid it
            is_possible = False
    return is_possible


def count_waiting(sockets: Iterable[Any]) -> int:
    """The number of connections that the kernel has established, but the process hasn't accepted. Linux only."""
    return sum(
        int.from_bytes(each.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 32)[_UNACKED], sys.byteorder)
        for each in sockets
        if each.family in (socket.AF_INET, socket.AF_INET6)
    )
