"""A text against a reference: one file a metric, all real metrics, for labels and for evaluation.

Higher is better for each of them. A missing reference is an error of the caller, never a score of 0.
"""
