"""Text objectives: losses of texts, with or without their images.  One part a file, see docs/extending.md."""
