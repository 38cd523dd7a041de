"""Behind `python -m data_pipeline.label`: scores on actor pools, verdicts of a judge, labelled rows, a manifest."""
