"""What a ranking is worth, how sure we are of it, and where: the offline metrics."""
