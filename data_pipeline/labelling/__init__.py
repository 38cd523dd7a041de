"""What `python -m data_pipeline.label` does: scores on actor pools, verdicts of a judge, labelled rows and a manifest."""
