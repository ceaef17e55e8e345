"""Reads a hospital's images into rows: files are hostile until they are decoded."""
