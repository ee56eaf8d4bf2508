"""A learner's file in a process of its own, and what stands for it in the process that judges.

The tests run in the judge. What they get as ``lab`` is a stand-in (standin.py): each call goes over a socket (wire.py) to the
process that has the learner's file in it (learner.py) and comes back as plain values: numbers, text, containers, tensors by their
bytes. Nothing is unpickled, so a file can answer wrongly, but it cannot touch what decides.
"""
