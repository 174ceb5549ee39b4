"""The pages of the studio, laid out with Gradio: they read the controls and show what the logic returns."""
