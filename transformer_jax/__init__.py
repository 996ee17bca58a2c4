"""A laboratory for attention mechanisms: define, prove, run and compare them fairly."""
