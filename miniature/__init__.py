"""The miniature: a small drawn world, its data sets and its small models.

Nothing outside this package imports it, except through a profile that names its files.
"""
