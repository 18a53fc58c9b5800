"""Targets: losses of an image, and of what is known of it.  One part a file, see docs/extending.md."""
