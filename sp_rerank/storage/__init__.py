"""Bytes without meaning: files that are whole or not there, image files, the model hub."""
