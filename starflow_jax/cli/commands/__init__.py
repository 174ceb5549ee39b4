"""The commands of `starflow`, one module each, which `cli/dispatch.py` discovers without a list.

A module `train_autoencoder.py` is the command `train-autoencoder`. It holds

- `ORDER`: an integer, the position of the command in `starflow --help`;
- `OVERRIDABLE = True` where the command takes `--config.NAME=VALUE`;
- `COMPILES = True` where compiled programs are kept for later commands (`cli/compiled_programs.py`);
- `add_to(subparsers)`, which declares the options;
- `run(arguments)`, which builds a typed request from them (`cli/options/build_request.py`), calls the library, prints
  the result, and returns an exit code.

`--help` imports every module, so a module imports JAX, and modules that import JAX, inside `run` only.
"""
