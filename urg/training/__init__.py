"""What a training worker does: the loop, the engine (the only DeepSpeed), checkpoints, and evaluation on the dev
split."""
