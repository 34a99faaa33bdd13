"""Stored embeddings to a codec: sampling, initialisation, the optimization loop."""
