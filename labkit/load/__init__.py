"""Traces, verifies and explains loads of the real vLLM, and serves plugins with it. The only package that imports vllm."""
