"""As many threads as there can be."""

import threading

while True:
    try:
        threading.Thread(target=threading.Event().wait).start()
    except RuntimeError:
        pass
