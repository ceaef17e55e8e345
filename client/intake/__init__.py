"""What a hospital has, read into rows: files are hostile until they are decoded."""
