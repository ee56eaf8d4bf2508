"""A small real LLM engine, made to be read: one contract, paged KV, continuous batching."""
