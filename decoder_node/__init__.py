"""The ground side: link -> ledger -> symbols -> scene -> GeoTIFF and STAC -> page."""
