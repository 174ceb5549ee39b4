"""Models on the Hugging Face Hub: published folders, what is read from them, a pipeline with the names of diffusers.

- `published_folder`: the layout of a published folder.
- `publishing`: writes it, from a run or a model folder; `model_card`: its README.md; `upload`: one commit on the Hub.
- `run_files`: which files of a run and of frozen models are published.
- `model_opening`: a path or an address as the folder of a run; a published folder is converted once.
- `pipeline`, `pipeline_arguments`: `StarFlowPipeline`.

Addresses hf:// are resolved in `core.storage`, for every place that reads a path.
"""
