"""A trained model on pictures: reading them, running it, its segments as JSON."""
