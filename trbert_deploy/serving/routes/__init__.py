"""Routes, a file for each API that clients know."""
