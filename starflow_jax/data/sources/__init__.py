"""Sources of examples, one file each, registered in `SOURCES`."""
