"""What long commands keep on disk, so that nothing is computed twice: embeddings and scores, by hashes of texts."""
