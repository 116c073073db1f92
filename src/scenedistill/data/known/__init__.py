"""Well-known data sets: their content, and how they are downloaded."""
