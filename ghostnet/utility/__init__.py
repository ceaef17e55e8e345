"""How useful synthetic images are: models trained on them, tested on real images that stay in the hospitals."""
