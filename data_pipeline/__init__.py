"""Text in, tokenized per-candidate shards out (Ray Data). Imports nothing from `urg`, `tuning` or `cluster`."""
