"""Evaluation: recall, distortion, and benchmarks of codecs, searches, ingestion and row operations."""
