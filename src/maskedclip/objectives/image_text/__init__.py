"""Image-text objectives: losses that bring images and texts together.  One part a file, see docs/extending.md."""
