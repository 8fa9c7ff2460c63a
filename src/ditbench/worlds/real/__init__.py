"""The real worlds: published diffusion transformers, sampled by diffusers' own pipelines.

A world is one YAML file of this folder; `worldfile.py` says what it may hold. Nothing heavy is imported until a world
is loaded.
"""
