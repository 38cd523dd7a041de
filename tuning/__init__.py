"""Sweeps and the paper's experiments (Ray Tune, Optuna). Imports `urg`."""
