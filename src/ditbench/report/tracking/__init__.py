"""MLflow as a view of the records: what its runs hold, how they are written, and its pages."""
