"""One file a mechanism; the file's name is the name it goes by in :func:`regard.create`."""
