"""The commands behind `starflow`, one file a command.

Each has `add_to(subparsers)`, which declares its arguments, and `run(arguments)`, which returns an exit code.
Importing one is cheap, so that `--help` answers at once: what needs JAX is imported when a command runs.

- `train`, `sample`, `evaluate`, `demo`, `version`: the commands.
- `arguments`: how options are read. `errors`: one-sentence refusals. `outputs`: where results go.
"""
