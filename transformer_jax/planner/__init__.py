"""Plans a run for a TPU that is not there: what the TPU's own compiler says of its training step."""
