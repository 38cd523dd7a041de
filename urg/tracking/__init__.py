"""MLflow, without waiting for it: see tracker.py."""

from urg.tracking.tracker import OFF, Tracker, absolute_uri, default_uri, last_run

__all__ = ["OFF", "Tracker", "absolute_uri", "default_uri", "last_run"]
