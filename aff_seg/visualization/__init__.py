"""Pictures of what a model found and of where it kept its tokens."""
