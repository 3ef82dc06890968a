"""Negatives that a teacher takes for relevant: dropped, or made positives."""
