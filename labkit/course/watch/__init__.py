"""``./lab watch``: a verdict at every save.

    warm.py      a process that has imported everything once and forks for every run; the learner's code runs in the fork
    told.py      what the fork says of each test: pytest's words, expected against got, what was printed
    runs.py      the other side: starts the warm process, begins a run, reads what comes, ends it
    changes.py   when a file has changed: the system's events, or looking again and again where there are none
    view.py      what is on the screen
    session.py   the loop: files, keys and results

The process that the learner talks to never imports torch, and never runs a line of theirs.
"""
