"""How the shipped weights of the scenes world were made (`snakemake assets`)."""
