"""Datasets on disk: the directory format, readers, checks and the sources they are made from."""
