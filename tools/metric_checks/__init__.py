"""The checks behind check_metrics.py, by kind of case."""
