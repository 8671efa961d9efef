"""The release: three models as one family, with cards, lineage and a manifest of every file."""
