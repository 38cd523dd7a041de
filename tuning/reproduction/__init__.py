"""Parts of `python -m tuning.reproduce`: what each experiment of the paper needs, running it, and showing it."""
