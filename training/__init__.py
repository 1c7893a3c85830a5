"""Makes model bundles: corpus, model, objective, training loop, export. The only package that imports torch."""
