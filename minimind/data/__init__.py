"""Data files, their tokenized form, and the starter corpus. Importing this package imports nothing."""
