"""Stored runs and the tables made of them: the border between what computes and what shows. No torch."""
