"""A `Distribution` as an object of another library: one file a library, imported only when it is asked for."""
