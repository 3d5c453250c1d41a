"""Files: activation shards, artifacts, snapshots of unfinished work."""
