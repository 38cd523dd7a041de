"""The generated corpus that ships with the project, and the small base model that goes with it."""

from data_pipeline.sample.corpus import BASE_MODEL, SAMPLE_LABEL, SampleConfig, generate_rows, write_sample

__all__ = ["BASE_MODEL", "SAMPLE_LABEL", "SampleConfig", "generate_rows", "write_sample"]
