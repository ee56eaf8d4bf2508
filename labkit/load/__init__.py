"""The real vLLM: its load traced, verified and explained, and plugins that it serves. The only room that imports vllm."""
