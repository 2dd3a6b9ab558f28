"""What was used: the ledger, prices and the metrics page."""
