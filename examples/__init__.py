"""Complete pipelines and short recipes built on mmrobust."""
