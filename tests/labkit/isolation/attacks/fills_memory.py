"""As much memory as there can be, every page of it written."""

hoard = []
while True:
    hoard.append(bytearray(b"x" * (1 << 28)))
