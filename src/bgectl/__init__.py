"""bgectl: fine-tune a BGE text embedder from the command line."""

__version__ = "0.1.0"
