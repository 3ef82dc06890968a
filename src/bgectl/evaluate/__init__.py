"""How well an embedder retrieves: judged data, measures, and the comparison of two models."""
