"""Images: reading files, and fitting them onto canvases."""
