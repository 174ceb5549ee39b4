"""The pipelined inverse: shallow blocks process a frame while the deep block solves the next one."""
