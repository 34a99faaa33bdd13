"""Vectors to codes and back: torch and numpy, never Arrow, never LanceDB."""
