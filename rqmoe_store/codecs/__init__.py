"""Codecs: vectors to codes and back, in torch and numpy, without Arrow and LanceDB."""
