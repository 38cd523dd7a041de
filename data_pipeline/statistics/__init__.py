"""What a set of rows holds, counted in one pass: `python -m data_pipeline.stats`."""
