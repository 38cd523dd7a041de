"""The parts of `data_pipeline.collect`: prompts in, each model asked, answers journaled, rows out."""
