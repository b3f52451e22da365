"""Losses: matching, box and objectness terms, language and caption terms, and their one weighted sum."""
