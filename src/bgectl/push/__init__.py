"""A model folder on the hub."""
