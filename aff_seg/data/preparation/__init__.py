"""Makes and checks the files that training needs beside the published datasets.

The scripts ``datasets/prepare_*.py`` are the ways in. Each dataset is a list of steps: what is
made for each image of a split, and how that is checked. Everything is made by several processes,
written whole or not at all, and left alone where it is already there.
"""
