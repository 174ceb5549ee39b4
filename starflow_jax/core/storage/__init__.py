"""Files and folders: atomic publication on a file system, and the same for objects in a store such as S3 or GCS."""
