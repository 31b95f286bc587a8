"""Our trees, as the records that trainers and other tools read."""
