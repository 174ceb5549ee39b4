"""The quality and motion of videos."""
