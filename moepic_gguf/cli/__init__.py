"""Console scripts: chat, info, bench. The only place that prints and reads the environment (`MOEPIC_*`, by click)."""
