"""Texts as they come: files of several formats, plain and compressed, pipes and standard input."""
