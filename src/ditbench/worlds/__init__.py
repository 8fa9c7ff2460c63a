"""Worlds: what is needed to generate images and to judge them."""
