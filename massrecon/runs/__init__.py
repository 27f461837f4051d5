"""Runs: notebooks executed headless and by the thousand, the demonstration, and reports."""
