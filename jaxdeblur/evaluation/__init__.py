"""Evaluation: metrics, the protocols of published tables, and the report."""
