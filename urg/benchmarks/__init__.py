"""Parts of `python -m urg.benchmark`: rows, the obvious code to compare with, clocks, a file an experiment."""
