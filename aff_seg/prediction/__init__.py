"""A trained model on pictures and videos: reading them, running it, what it found, as files."""
