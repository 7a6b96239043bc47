"""Contestants that have kernels for GPUs alone: modules as those of `peers`, whose results are fresh."""
