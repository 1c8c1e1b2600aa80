"""Several worker processes that accept on one listening socket, and their parent."""
