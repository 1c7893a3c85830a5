"""The laboratory: every member of the autoencoder family on real imagery, from one builder and one loop.

Read in this order: config (what a row says), places (pixels), architectures, corruptions, penalties/ (one file each),
heads, trial (what the loop trains), tasks/ (aims other than giving the input back), figures (what is measured), rows
(which trials, how long, what is kept), page (docs/lab.md).
"""
