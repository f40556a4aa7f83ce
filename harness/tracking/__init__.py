"""MLflow mirrors the records: writing, replaying, reading and showing them."""
