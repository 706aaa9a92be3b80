"""The whole loop on one machine: every stage as the command a person would type, then a summary and a report."""
