"""The only door to the compiled modules, to array libraries and to the file system's guarantees."""
