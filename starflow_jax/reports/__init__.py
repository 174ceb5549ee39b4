"""One HTML page of a training run, from the files of its folder.

- `run_text`: the state of a run in words, as `starflow info` prints it.
- `curve_chart`, `metric_curves`: metrics against the step, as SVG.
- `pictures`: pictures of a folder, decoded, made small and embedded.
- `likelihood_results`: bits/dim from the JSON files that other commands wrote.
- `configuration`: the configuration beside its defaults, and the commands that train the same again.
- `run_report`: the page.
"""
