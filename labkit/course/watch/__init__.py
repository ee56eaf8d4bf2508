"""``./lab watch``: grades the learner's file at every save.

    server.py    a process that has imported everything once and forks for each run; the learner's code runs in the fork
    runs.py      the client of server.py's process: starts a run, reads the results, kills the run
    changes.py   detects that a file has changed: by the system's events, or by polling where there are none
    view.py      formats the screen
    session.py   the event loop: files, single keys and results

The process that reads the keyboard never imports torch, and never runs the learner's code.
"""
