"""The shipped examples, from nothing to a report.

- `digits`: pictures, and what both examples share.
- `video`: clips of moving digits; `drawings`: what it draws and measures.
"""
