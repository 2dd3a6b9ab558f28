"""The command line, one file per verb. The only place that wires everything together; imports are lazy."""
