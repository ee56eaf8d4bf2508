"""Talks to the judge itself, over the socket that it finds among its files: says that all is well, then nonsense."""

import os
import socket
import stat

for number in range(3, 64):
    try:
        if not stat.S_ISSOCK(os.fstat(number).st_mode):
            continue
    except OSError:
        continue
    end = socket.socket(fileno=os.dup(number))
    for text in (
        b'{"value": {"object": [0, ["builtins:object"], null]}, "wrote": [], "registered": []}',
        b"[" * 100_000,
        b"\xff",
    ):
        end.sendall(len(text).to_bytes(8, "little") + bytes(8) + text)
