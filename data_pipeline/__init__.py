"""Data for training: records of people, built from pictures, streamed as pairs (`docs/data.md`)."""
