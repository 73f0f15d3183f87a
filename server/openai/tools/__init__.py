"""Tool calls: read out of what models write, and forced by a grammar."""
