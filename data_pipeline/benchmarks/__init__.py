"""Parts of `python -m data_pipeline.benchmark`: rows to prepare, watching memory, and what is compared with."""
