"""`python -m data_pipeline.sample --output DIR`: write the generated corpus as JSON lines."""

from data_pipeline.cli import run_command
from data_pipeline.sample.corpus import SampleConfig, main

run_command(main, SampleConfig)
