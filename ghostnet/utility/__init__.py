"""Utility of synthetic images: models trained on them, tested on real images that stay in the hospitals."""
