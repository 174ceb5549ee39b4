"""The demos: each trains an example, evaluates it and writes a report.

- `demo_request`: either demo by one call.
- `digits_demo`: images of digits, and the code that both demos share.
- `video_demo`: clips of moving digits; `drawings`: the samples of that demo and their measures.
"""
