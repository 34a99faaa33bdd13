"""Stored embeddings to a codec: sampling, initialization, the optimization loop."""
