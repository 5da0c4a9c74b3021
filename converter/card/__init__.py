"""The quality card: report.json and report.html."""
