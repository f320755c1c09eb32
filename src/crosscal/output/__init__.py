"""Folders that other tools load: dense or packed, with masks, report and model card."""
