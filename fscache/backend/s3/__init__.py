"""Buckets behind the S3 protocol."""
