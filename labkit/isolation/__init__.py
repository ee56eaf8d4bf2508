"""Isolation: the learner's file runs in a process of its own, in a sandbox; the tests run in the judge.

The fixture ``lab`` is a proxy (rpc_proxy.py). Each call goes over a socket (rpc_protocol.py) to the learner's process
(learner_process.py) and returns plain values: numbers, text, containers, tensors as bytes. Nothing is unpickled, so a file can
return wrong values, but cannot change the verdict.
"""
