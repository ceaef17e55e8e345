"""The hospital: the only code that touches patient data."""
