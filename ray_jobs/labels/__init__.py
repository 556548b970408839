"""Captions, transcripts and word times by local models. What people wrote wins, always."""
