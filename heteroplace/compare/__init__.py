"""Batch experiments: families × sizes × seeds × profiles, resumable, as one table of results."""
