"""Tests, laid out like the packages; `planted` holds known bugs that must be caught."""
