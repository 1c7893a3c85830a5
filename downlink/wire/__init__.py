"""Generated from proto/downlink/v1/link.proto by proto/generate.py (`make proto`); never edited by hand."""
