"""Headers, identifiers and burned-in text: what a patient could be known by ends here."""
