"""Advice on how many bytes per vector a table needs: measured on a sample, estimated at its full size."""
