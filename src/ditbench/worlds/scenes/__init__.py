"""`scenes`: the embedded world, a small text-to-image diffusion transformer that ships with the repository."""
