"""A trained model in the browser: `starflow studio`.

The logic imports no Gradio, and is called and tested without a browser:

- `studio_request`, `opened_model`: what is opened, and the checkpoints and solvers that it has.
- `page_support`: which pages a model has, and the reason where it has not.
- `uploads`: dropped files, read by the project's readers. `background_work`: long work that reports and can be ended.
- `drawing`: samples, frame by frame as they are final. `command_lines`: the same by `starflow sample` or `edit`.
- `scoring`, `familiarity`: likelihood, surprise, classes, and whether an example is like the data of the run.
- `filling_in`: painted masks, and draws of what they hide. `comparing`: two settings on the same noise.
- `shown_pictures`, `shown_results`: results as HTML whose text is escaped and whose pictures are embedded.

`pages` lays these out with Gradio, one file a page; `application` joins the pages, `serving` and `guarded_requests`
serve them on one address, and nothing but them.
"""
