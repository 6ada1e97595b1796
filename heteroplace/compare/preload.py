"""Imported by the server that workers are forked from: what every worker needs."""

from heteroplace.compare.measure import prepare_worker

prepare_worker()
