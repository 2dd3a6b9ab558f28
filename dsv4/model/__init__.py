"""The architecture, one file per section of the report. Start at `transformer.py`."""
